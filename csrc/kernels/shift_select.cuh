// Grid: one block per row of the batch. The candidates are laid out by slot in the workspace; the
// key of the last one taken is found bit by bit, by counting; then runs of num_threads slots are
// looked at one after the other, and a thread's place in a list is its rank among those that write.
#pragma once

#include "kernels/block_sum.cuh"
#include "kernels/kv_arena.cuh"
#include "kernels/shift.h"

namespace pydstp {

constexpr int kSelectThreads = 256;

enum ShiftKind : int32_t { kNoCandidate, kBaseCandidate, kReserveCandidate };

// What a block selects for.
struct ShiftTask {
  int64_t seq, capacity;
  int32_t swap;
  uint32_t* keys;    // [capacity] larger for larger values
  int32_t* kinds;    // [capacity] ShiftKind
  int32_t* list;     // [list_capacity] where it writes
  int32_t* ranks;    // [num_threads] shared
  float* scratch;    // [num_warps] shared
  double* doubles;   // [num_threads] shared
  bool is_overfull;  // the list was too short
};

// The keys' order is that of the floats; NaN counts as 0, and so does -0.
PYDSTP_DEVICE uint32_t shift_key(float value) {
  if (value != value || value == 0.0f) value = 0.0f;
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits ^ 0x80000000u;
}

PYDSTP_DEVICE bool is_competing(const ShiftTask& t, int64_t slot) {
  return (t.kinds[slot] == kReserveCandidate && t.swap != kSwapTop) ||
         (t.kinds[slot] == kBaseCandidate && t.swap != kSwapAdd);
}

// The slot of entry i of a list of the sequence, -1 if there is none.
PYDSTP_DEVICE int64_t listed_slot(const ShiftSelectParams& p, int64_t seq, const int32_t* lists,
                                  const int32_t* lengths, int64_t i) {
  const int64_t capacity = p.state.capacity;
  if (lengths[seq] < 0 || lengths[seq] > capacity) set_status(p.status, kBadLength);
  if (i >= min_of(lengths[seq], capacity)) return -1;
  const int64_t slot = lists[seq * capacity + i];
  if (is_index(slot, capacity)) return slot;
  set_status(p.status, kBadSlot);
  return -1;
}

PYDSTP_DEVICE void mark_kind(const ShiftSelectParams& p, const ShiftTask& t, const int32_t* lists,
                             const int32_t* lengths, int32_t kind) {
  for (int64_t i = thread_idx(); i < t.capacity; i += num_threads()) {
    const int64_t slot = listed_slot(p, t.seq, lists, lengths, i);
    if (slot >= 0) t.kinds[slot] = kind;
  }
  sync_threads();
}

// The sum of probs over S0.
PYDSTP_DEVICE double base_total(const ShiftTask& t, const float* probs) {
  double total = 0;
  for (int64_t slot = thread_idx(); slot < t.capacity; slot += num_threads()) {
    const float value = probs[slot];
    if (t.kinds[slot] == kBaseCandidate && value == value) total += value;
  }
  t.doubles[thread_idx()] = total;
  sync_threads();
  total = 0;
  for (int i = 0; i < num_threads(); ++i) total += t.doubles[i];
  return total;
}

PYDSTP_DEVICE void find_candidates(const ShiftSelectParams& p, const ShiftTask& t) {
  const ShiftState& s = p.state;
  for (int64_t i = thread_idx(); i < t.capacity; i += num_threads()) t.kinds[i] = kNoCandidate;
  sync_threads();
  mark_kind(p, t, s.reserve_indices, s.reserve_len, kReserveCandidate);
  mark_kind(p, t, s.base_indices, s.base_len, kBaseCandidate);
  const float* probs = s.probs + t.seq * t.capacity;
  const float* scores = s.scores + t.seq * t.capacity;
  const bool is_joint = s.policy[t.seq * kPolicyWords + kJoint] != 0;
  const double total = base_total(t, probs);
  for (int64_t slot = thread_idx(); slot < t.capacity; slot += num_threads()) {
    float value = scores[slot];
    if (t.kinds[slot] == kBaseCandidate && !is_joint) {
      value = total > 0 ? static_cast<float>(probs[slot] / total) : 0.0f;
      if (t.swap == kSwapTop) value = probs[slot];
    }
    t.keys[slot] = shift_key(value);
  }
  sync_threads();
}

// How many competing slots have a key of at least `key`; every thread gets the number.
PYDSTP_DEVICE int64_t count_from(const ShiftTask& t, uint32_t key) {
  float count = 0.0f;  // exact: capacities are far below 2^24
  for (int64_t slot = thread_idx(); slot < t.capacity; slot += num_threads()) {
    if (is_competing(t, slot) && t.keys[slot] >= key) count += 1.0f;
  }
  return static_cast<int64_t>(block_sum(count, t.scratch));
}

// The best `wanted` slots have keys above *cut, or are among the first *ties that equal it.
PYDSTP_DEVICE void find_last_key(const ShiftTask& t, int64_t wanted, uint32_t* cut, int64_t* ties) {
  wanted = clamp_to(wanted, 0, count_from(t, 0));
  *cut = 0xffffffffu;
  *ties = 0;
  if (wanted == 0) return;  // the whole block
  *cut = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t tried = *cut | 1u << bit;
    if (count_from(t, tried) >= wanted) *cut = tried;
  }
  *ties = wanted - count_from(t, *cut + 1);  // no value has the largest key, which is a NaN
}

// Threads with a slot write it behind the *len that are in the list already.
PYDSTP_DEVICE void append_slots(ShiftTask& t, bool has_slot, int64_t slot, int32_t* list,
                                int64_t list_capacity, int64_t* len) {
  int count;
  const int64_t place = *len + block_rank(has_slot, t.ranks, &count);
  if (has_slot && place < list_capacity) list[place] = static_cast<int32_t>(slot);
  t.is_overfull = t.is_overfull || *len + count > list_capacity;
  *len = min_of(*len + count, list_capacity);
}

// How many slots the block shows beside those that it always shows; every thread gets the number.
PYDSTP_DEVICE int64_t count_wanted(const ShiftSelectParams& p, const ShiftTask& t) {
  const int32_t* policy = p.state.policy + t.seq * kPolicyWords;
  if (t.swap == kSwapAdd) return policy[kMaxReturned];
  if (t.swap != kSwapTop) return policy[kBudget];
  float largest = 0.0f;
  for (int64_t h = 0; h < p.num_heads; ++h) {
    largest = fmaxf(largest, p.mass[t.seq * p.num_heads + h]);  // fmaxf passes over NaN
  }
  const double share = static_cast<double>(fminf(largest, 1.0f)) * (1.0 - kMassSlack);
  const int64_t asked = static_cast<int64_t>(ceil(share * static_cast<double>(count_from(t, 0))));
  const int64_t low = policy[kMinBudget], high = policy[kBudget];
  return min_of(max_of(asked, low), high);
}

PYDSTP_DEVICE bool is_slot_shown(const ShiftTask& t, int32_t kind, bool is_best, bool is_pseudo) {
  if (t.swap == kSwapTop) return is_best;
  if (t.swap == kSwapFull) return kind != kNoCandidate;
  if (t.swap == kSwapHard || t.swap == kSwapMerge) return is_best || is_pseudo;
  return is_best || kind == kBaseCandidate;
}

// Returns the length of the list.
PYDSTP_DEVICE int64_t write_selection(const ShiftSelectParams& p, ShiftTask& t) {
  const ShiftState& s = p.state;
  const int32_t* policy = s.policy + t.seq * kPolicyWords;
  uint32_t cut;
  int64_t ties, tied = 0, shown = 0, dropped = 0;
  find_last_key(t, count_wanted(p, t), &cut, &ties);
  for (int64_t first = 0; first < t.capacity; first += num_threads()) {
    const int64_t slot = first + thread_idx();
    const int32_t kind = slot < t.capacity ? t.kinds[slot] : kNoCandidate;
    const bool competes = kind != kNoCandidate && is_competing(t, slot);
    const bool is_tie = competes && t.keys[slot] == cut;
    int count;
    const int64_t rank = tied + block_rank(is_tie, t.ranks, &count);
    tied += count;
    const bool is_best = competes && (is_tie ? rank < ties : t.keys[slot] > cut);
    const bool is_base = kind == kBaseCandidate;
    const bool is_pseudo = is_base && s.base_mask[t.seq * t.capacity + slot] == kPseudoToken;
    const bool is_shown = is_slot_shown(t, kind, is_best, is_pseudo);
    const bool is_dropped = t.swap == kSwapMerge && is_base && !is_shown;
    append_slots(t, is_shown, slot, t.list, p.list_capacity, &shown);
    append_slots(t, is_dropped, slot, s.dropped_indices + t.seq * t.capacity, t.capacity, &dropped);
  }
  if (thread_idx() == 0) s.dropped_len[t.seq] = static_cast<int32_t>(dropped);
  const int64_t merge_slot = policy[kMergeSlot];
  if (dropped == 0 || merge_slot == -1) return shown;
  const bool is_slot = is_index(merge_slot, t.capacity), is_first = thread_idx() == 0;
  if (!is_slot) set_status(p.status, kBadSlot);
  append_slots(t, is_slot && is_first, merge_slot, t.list, p.list_capacity, &shown);
  return shown;
}

PYDSTP_DEVICE int64_t write_base(const ShiftSelectParams& p, ShiftTask& t) {
  int64_t len = 0;
  for (int64_t first = 0; first < t.capacity; first += num_threads()) {
    const int64_t slot =
        listed_slot(p, t.seq, p.state.base_indices, p.state.base_len, first + thread_idx());
    append_slots(t, slot >= 0, slot, t.list, p.list_capacity, &len);
  }
  return len;
}

PYDSTP_KERNEL shift_select_kernel(ShiftSelectParams p) {
  PYDSTP_SHARED(double, doubles);  // [num_threads], then ranks [num_threads], scratch [num_warps]
  const ShiftState& s = p.state;
  const int64_t seq = p.seq_idx[block_x()];
  if (!is_index(seq, s.max_batch)) {  // the whole block
    if (seq != -1) set_status(p.status, kBadSequence);
    return;
  }
  const int32_t action = s.state[seq * kStateWords + kAction];
  if (action != kActionSelect && action != kActionRestore) return;  // the whole block
  int32_t* workspace = s.select_workspace + seq * 2 * s.capacity;
  int32_t* ranks = reinterpret_cast<int32_t*>(doubles + num_threads());
  const int64_t list_idx = seq * p.num_groups + p.group_idx;
  ShiftTask t = {seq,
                 s.capacity,
                 s.policy[seq * kPolicyWords + kSwap],
                 reinterpret_cast<uint32_t*>(workspace),
                 workspace + s.capacity,
                 p.visible_indices + list_idx * p.list_capacity,
                 ranks,
                 reinterpret_cast<float*>(ranks + num_threads()),
                 doubles,
                 false};
  if (action == kActionSelect) find_candidates(p, t);
  const int64_t len = action == kActionSelect ? write_selection(p, t) : write_base(p, t);
  if (thread_idx() != 0) return;
  p.visible_len[list_idx] = static_cast<int32_t>(len);
  if (t.is_overfull) set_status(p.status, kBadLength);
}

inline int launch_shift_select(const ShiftSelectParams& p, void* stream) {
  constexpr int64_t kSharedBytes = kSelectThreads * (sizeof(double) + sizeof(int32_t)) +
                                   kSelectThreads / kWarpSize * sizeof(float);
  return PYDSTP_LAUNCH(shift_select_kernel, Grid{p.batch}, kSelectThreads, kSharedBytes, stream, p);
}

}  // namespace pydstp
