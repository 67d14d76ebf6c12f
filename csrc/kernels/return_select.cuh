// Grid: one block per (KV head, row of the batch); without per_head the first does it for all. The
// shares of all entries are computed, and the best is taken again and again.
#pragma once

#include "kernels/attention_return.h"
#include "kernels/attention_row.cuh"
#include "kernels/block_sum.cuh"

namespace pydstp {

constexpr int kReturnThreads = 256;
constexpr float kNoEntry = -1.0f, kTaken = -2.0f;  // shares that do not compete

// What one row of the batch may get back. status: bits to report.
PYDSTP_DEVICE ReserveView row_reserve(const AttentionReturnParams& p, const AttentionRow& row,
                                      int32_t* status) {
  if (!row.list) return {};
  const DecodeAttentionParams& a = p.attention;
  const int64_t group = a.layer_to_group[row.seq * a.num_layers + a.layer_idx];
  return view_reserve(p, row.seq, group, status);
}

// The normaliser of one head, by one thread. `heads` rank together.
PYDSTP_DEVICE void normalise_head(const DecodeAttentionParams& a, const ReturnRow& r,
                                  const AttentionRow& row, int64_t batch_row, int64_t chunks,
                                  int64_t head, int64_t heads) {
  const int64_t listed = listed_chunks(row);
  float peak = -INFINITY, total = 0.0f;
  for (int64_t c = 0; c < listed; ++c) {
    peak = fmaxf(peak, attention_partial(a, batch_row, c, head)[a.arena.head_dim]);
  }
  for (int64_t c = 0; c < chunks; ++c) peak = fmaxf(peak, r.maxima[c * a.num_heads + head]);
  for (int64_t c = 0; c < listed; ++c) {
    const float* tail = attention_partial(a, batch_row, c, head) + a.arena.head_dim;
    if (tail[0] != -INFINITY) total += expf(tail[0] - peak) * tail[1];
  }
  for (int64_t c = 0; c < chunks; ++c) {
    const float maximum = r.maxima[c * a.num_heads + head];
    if (maximum != -INFINITY) total += expf(maximum - peak) * r.sums[c * a.num_heads + head];
  }
  r.peak[head] = peak;
  r.factor[head] = total > 0.0f ? 1.0f / (total * static_cast<float>(heads)) : 0.0f;
}

// The share of one entry among the heads [begin, begin + heads).
PYDSTP_DEVICE float entry_share(const ReturnRow& r, int64_t num_heads, int64_t entry, int64_t begin,
                                int64_t heads) {
  float share = 0.0f;
  const int64_t chunk = entry / kAttentionChunk, i = entry % kAttentionChunk;
  for (int64_t h = begin; h < begin + heads; ++h) {
    const float logit = r.logits[(chunk * num_heads + h) * kAttentionChunk + i];
    share += expf(logit - r.peak[h]) * r.factor[h];
  }
  return share == share ? share : 0.0f;
}

// A block computes the shares of all entries of a list.
PYDSTP_DEVICE void share_entries(const DecodeAttentionParams& a, const ReturnRow& r,
                                 const AttentionRow& row, int64_t batch_row,
                                 const ReserveView& reserve, int64_t begin, int64_t heads,
                                 float* shares) {
  for (int64_t i = thread_idx(); i < heads; i += num_threads()) {
    normalise_head(a, r, row, batch_row, reserve.num_chunks(), begin + i, heads);
  }
  sync_threads();
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    const bool is_slot = is_index(reserve.slots[i], a.arena.visual_capacity);
    shares[i] = is_slot ? entry_share(r, a.num_heads, i, begin, heads) : kNoEntry;
  }
  sync_threads();
}

// The place of the largest share, of the lowest slot among equals; -1 if none is left. All threads
// get it.
PYDSTP_DEVICE int64_t best_entry(const float* shares, const ReserveView& reserve, float* scratch,
                                 float* share) {
  float largest = kNoEntry;
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    largest = fmaxf(largest, shares[i]);
  }
  *share = block_max(largest, scratch);
  if (*share < 0.0f) return -1;  // the whole block
  float nearest = -INFINITY;     // slots are far below 2^24, and so are places
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    if (shares[i] == *share) nearest = fmaxf(nearest, -static_cast<float>(reserve.slots[i]));
  }
  nearest = block_max(nearest, scratch);
  float place = -1.0f;
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    const bool is_best = shares[i] == *share && -static_cast<float>(reserve.slots[i]) == nearest;
    if (is_best) place = fmaxf(place, static_cast<float>(i));
  }
  return static_cast<int64_t>(block_max(place, scratch));
}

// Marks what returns in shares; returns how many.
PYDSTP_DEVICE int64_t take_entries(float* shares, const ReserveView& reserve, float* scratch) {
  float missing = 0.0f;
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    missing += fmaxf(shares[i], 0.0f);
  }
  missing = block_sum(missing, scratch);
  int64_t taken = 0;
  while (taken < reserve.max_returned && !(reserve.mass > 0.0f && missing < reserve.mass)) {
    float share;
    const int64_t place = best_entry(shares, reserve, scratch, &share);
    if (place < 0) break;  // the whole block
    if (thread_idx() == 0) shares[place] = kTaken;
    missing -= share;
    ++taken;
    sync_threads();
  }
  return taken;
}

// Writes the slots that are marked, ascending, `copies` times.
PYDSTP_DEVICE void write_taken(const float* shares, const ReserveView& reserve, int32_t* out,
                               int64_t capacity, int64_t copies) {
  for (int64_t i = thread_idx(); i < reserve.len; i += num_threads()) {
    if (shares[i] != kTaken) continue;
    int64_t rank = 0;
    for (int64_t j = 0; j < reserve.len; ++j) {
      const bool is_before =
          reserve.slots[j] < reserve.slots[i] || (reserve.slots[j] == reserve.slots[i] && j < i);
      if (shares[j] == kTaken && is_before) ++rank;
    }
    for (int64_t copy = 0; copy < copies; ++copy) out[copy * capacity + rank] = reserve.slots[i];
  }
}

PYDSTP_KERNEL select_returned_kernel(AttentionReturnParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const DecodeAttentionParams& a = p.attention;
  const int64_t kv = block_x(), batch_row = block_y(), kv_heads = a.arena.num_kv_heads;
  const AttentionRow row = attention_row(a, batch_row);
  int32_t status = 0;
  const ReserveView reserve = row_reserve(p, row, &status);
  if (thread_idx() == 0) set_status(a.status, status);
  int32_t* len = a.returned.len + batch_row * kv_heads + kv;
  if (reserve.len == 0 && thread_idx() == 0) *len = 0;
  if (reserve.len == 0 || (!reserve.per_head && kv > 0)) return;  // the whole block

  const int64_t chunks = ceil_div(p.reserve_capacity, kAttentionChunk);
  const ReturnRow r = return_row(p, batch_row);
  float* shares = r.shares + kv * chunks * kAttentionChunk;
  const int64_t group = a.num_heads / kv_heads, heads = reserve.per_head ? group : a.num_heads;
  share_entries(a, r, row, batch_row, reserve, kv * group, heads, shares);
  const int64_t taken = take_entries(shares, reserve, scratch), capacity = a.returned.capacity;
  const int64_t copies = reserve.per_head ? 1 : kv_heads;
  write_taken(shares, reserve, a.returned.indices + (batch_row * kv_heads + kv) * capacity,
              capacity, copies);
  for (int64_t i = thread_idx(); i < copies; i += num_threads()) {
    len[i] = static_cast<int32_t>(taken);
  }
}

}  // namespace pydstp
