// shift_select: the lists that detected shifts ask for, the same code for every instruction set.
// All candidates of a sequence are laid out by slot; the k-th largest value is found digit by digit
// and one scan in slot order writes the lists.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/math.h"
#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

enum Kind : int32_t { kNone, kInBase, kInReserve };

void report(const ShiftSelectParams& p, int32_t bits) {
  if (p.status && bits) __atomic_fetch_or(p.status, bits, __ATOMIC_RELAXED);
}

// One sequence's candidates by slot.
struct Candidates {
  uint32_t* keys;  // [capacity] larger for larger values
  int32_t* kinds;  // [capacity]
  int64_t capacity;
};

// A list that ends at its capacity.
struct List {
  int32_t* slots;
  int64_t capacity;
  int64_t len = 0;
  bool is_full = false;

  void push(int64_t slot) {
    is_full = is_full || len == capacity;
    if (!is_full) slots[len++] = static_cast<int32_t>(slot);
  }
};

// Unsigned numbers in the order of the floats. NaN counts as 0.
uint32_t sort_key(float x) {
  if (!(x < 0 || x > 0)) x = 0.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Calls f(slot) for the entries of a list that name a slot.
template <typename F>
void for_each_slot(const ShiftSelectParams& p, int64_t seq, const int32_t* lists,
                   const int32_t* lengths, const F& f) {
  const int64_t capacity = p.state.capacity, len = lengths[seq];
  if (len < 0 || len > capacity) report(p, kBadLength);
  for (int64_t i = 0; i < min_of(len, capacity); ++i) {
    const int64_t slot = lists[seq * capacity + i];
    if (is_index(slot, capacity)) {
      f(slot);
    } else {
      report(p, kBadSlot);
    }
  }
}

Candidates collect(const ShiftSelectParams& p, int64_t seq) {
  const ShiftState& s = p.state;
  int32_t* memory = s.select_workspace + seq * 2 * s.capacity;
  const Candidates c = {reinterpret_cast<uint32_t*>(memory), memory + s.capacity, s.capacity};
  memset(c.kinds, 0, static_cast<size_t>(s.capacity) * sizeof(int32_t));
  for_each_slot(p, seq, s.reserve_indices, s.reserve_len,
                [&c](int64_t slot) { c.kinds[slot] = kInReserve; });
  for_each_slot(p, seq, s.base_indices, s.base_len,
                [&c](int64_t slot) { c.kinds[slot] = kInBase; });
  return c;
}

// Values: scores of the reserve, and shares of the attention over the base set, or its attention
// where it competes alone; scores of both if they were normalised together.
void set_keys(const ShiftSelectParams& p, int64_t seq, const Candidates& c) {
  const float* probs = p.state.probs + seq * c.capacity;
  const float* scores = p.state.scores + seq * c.capacity;
  const int32_t* policy = p.state.policy + seq * kPolicyWords;
  const bool is_joint = policy[kJoint] != 0, is_alone = policy[kSwap] == kSwapTop;
  double total = 0;
  for (int64_t slot = 0; slot < c.capacity; ++slot) {
    const bool counts = c.kinds[slot] == kInBase && probs[slot] == probs[slot];
    if (counts) total += probs[slot];
  }
  for (int64_t slot = 0; slot < c.capacity; ++slot) {
    const bool is_share = c.kinds[slot] == kInBase && !is_joint;
    const double share = is_alone ? probs[slot] : total > 0 ? probs[slot] / total : 0.0;
    c.keys[slot] = sort_key(is_share ? static_cast<float>(share) : scores[slot]);
  }
}

// What tells the k best: keys above `key`, and the first `ties` of those that equal it.
struct Cut {
  uint32_t key = 0xffffffffu;
  int64_t ties = 0;

  bool takes(uint32_t candidate) { return candidate > key || (candidate == key && ties-- > 0); }
};

bool competes(int32_t kind, int32_t swap) {
  return (kind == kInReserve && swap != kSwapTop) || (kind == kInBase && swap != kSwapAdd);
}

// How many of n slots of S0 the sequence's masses ask for.
int64_t mass_budget(const ShiftSelectParams& p, int64_t seq, int64_t n) {
  const int32_t* policy = p.state.policy + seq * kPolicyWords;
  float largest = 0;
  for (int64_t h = 0; h < p.num_heads; ++h) {
    const float mass = p.mass[seq * p.num_heads + h];
    if (mass > largest) largest = mass;
  }
  const double share = std::min(largest, 1.0f) * (1 - kMassSlack);
  const int64_t asked = static_cast<int64_t>(std::ceil(share * static_cast<double>(n)));
  return min_of(max_of(asked, policy[kMinBudget]), policy[kBudget]);
}

int64_t wanted_slots(const ShiftSelectParams& p, int64_t seq, const Candidates& c) {
  const int32_t* policy = p.state.policy + seq * kPolicyWords;
  if (policy[kSwap] == kSwapAdd) return policy[kMaxReturned];
  if (policy[kSwap] != kSwapTop) return policy[kBudget];
  return mass_budget(p, seq, std::count(c.kinds, c.kinds + c.capacity, kInBase));
}

Cut find_cut(const Candidates& c, int32_t swap, int64_t wanted) {
  int64_t count = 0;
  for (int64_t slot = 0; slot < c.capacity; ++slot) count += competes(c.kinds[slot], swap);
  Cut cut;
  int64_t left = clamp_to(wanted, 0, count);
  if (left == 0) return cut;
  cut.key = 0;
  uint32_t decided = 0;  // the bits that are found
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t counts[256] = {};
    for (int64_t slot = 0; slot < c.capacity; ++slot) {
      const bool matches = (c.keys[slot] & decided) == cut.key;
      if (matches && competes(c.kinds[slot], swap)) ++counts[c.keys[slot] >> shift & 255u];
    }
    uint32_t digit = 255;
    while (counts[digit] < left) left -= counts[digit--];
    cut.key |= digit << shift;
    decided |= 255u << shift;
  }
  cut.ties = left;
  return cut;
}

bool is_shown(int32_t swap, int32_t kind, bool is_best, bool is_pseudo) {
  switch (swap) {
    case kSwapFull:
      return true;
    case kSwapHard:
    case kSwapMerge:
      return is_best || is_pseudo;
    case kSwapTop:
      return is_best;
  }
  return is_best || kind == kInBase;
}

// Writes the shown slots, and those of the base set that a merge leaves out.
void write_lists(const ShiftSelectParams& p, int64_t seq, const Candidates& c, List& shown) {
  const ShiftState& s = p.state;
  const int32_t* policy = s.policy + seq * kPolicyWords;
  const int32_t swap = policy[kSwap];
  Cut cut;
  if (swap != kSwapFull) {
    set_keys(p, seq, c);
    cut = find_cut(c, swap, wanted_slots(p, seq, c));
  }
  List dropped = {s.dropped_indices + seq * c.capacity, c.capacity};
  for (int64_t slot = 0; slot < c.capacity; ++slot) {
    const int32_t kind = c.kinds[slot];
    if (kind == kNone) continue;
    const bool is_best = swap != kSwapFull && competes(kind, swap) && cut.takes(c.keys[slot]);
    const bool is_pseudo = kind == kInBase && s.base_mask[seq * c.capacity + slot] == kPseudoToken;
    if (is_shown(swap, kind, is_best, is_pseudo)) {
      shown.push(slot);
    } else if (swap == kSwapMerge && kind == kInBase) {
      dropped.push(slot);
    }
  }
  s.dropped_len[seq] = static_cast<int32_t>(dropped.len);
  if (dropped.len == 0 || policy[kMergeSlot] == -1) return;
  if (is_index(policy[kMergeSlot], c.capacity)) return shown.push(policy[kMergeSlot]);
  report(p, kBadSlot);
}

void select_row(const ShiftSelectParams& p, int64_t row) {
  const ShiftState& s = p.state;
  const int64_t seq = p.seq_idx[row];
  if (seq == -1) return;
  if (!is_index(seq, s.max_batch)) return report(p, kBadSequence);
  const int32_t action = s.state[seq * kStateWords + kAction];
  const int64_t list_idx = seq * p.num_groups + p.group_idx;
  List shown = {p.visible_indices + list_idx * p.list_capacity, p.list_capacity};
  if (action == kActionRestore) {
    for_each_slot(p, seq, s.base_indices, s.base_len, [&](int64_t slot) { shown.push(slot); });
  } else if (action == kActionSelect) {
    write_lists(p, seq, collect(p, seq), shown);
  } else {
    return;
  }
  p.visible_len[list_idx] = static_cast<int32_t>(shown.len);
  if (shown.is_full) report(p, kBadLength);
}

}  // namespace

void select_slots(const ShiftSelectParams& p, ThreadPool& pool) {
  bool is_asked = false;
  for (int64_t row = 0; row < p.batch; ++row) {
    const int64_t seq = p.seq_idx[row];
    const bool is_known = is_index(seq, p.state.max_batch);
    is_asked = is_asked || (is_known ? p.state.state[seq * kStateWords + kAction] : seq + 1) != 0;
  }
  if (!is_asked) return;
  pool.parallel_for(0, p.batch, 1, [&p](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) select_row(p, row);
  });
}

}  // namespace pydstp
