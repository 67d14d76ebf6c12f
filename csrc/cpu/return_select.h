// Which entries of a reserve return: the best by share, found chunk by chunk.
//
// Shares are bounded from above without exp, at a few instructions each. So chunks are opened
// (their shares computed) only when their bound is above everything that is known: a few of many.
#pragma once

#include "cpu/attention_monitor.h"
#include "kernels/attention_return.h"

namespace pydstp {
namespace PYDSTP_TIER {

// One list of a row: the heads that rank together, and its part of the workspace.
struct ReturnList {
  ReserveView reserve;
  ReturnRow row;
  int64_t num_heads;          // of the row
  int64_t head_begin, heads;  // that rank
  int64_t visual_capacity;
  float* shares;     // [chunks, 64]
  float* best;       // [chunks]
  int32_t* is_open;  // [chunks]
};

constexpr float kNoEntry = -1.0f, kTaken = -2.0f;  // shares that do not compete

static inline F32 without_nan(F32 x) { return x == x ? x : F32{}; }

// One number of each of n heads, `stride` elements apart; where there are fewer than kLanes,
// `rest`.
static inline F32 load_heads(const float* x, int64_t stride, int64_t n, float rest) {
  float lanes[kLanes];
  store(lanes, splat(rest));
  if (stride == 1 && n >= kLanes) return load(x);
  for (int64_t i = 0; i < min_of(n, kLanes); ++i) lanes[i] = x[i * stride];
  return load(lanes);
}

// The maxima and sums that some chunks left, and the strides between heads and chunks.
struct Tails {
  const float *maxima, *sums;
  int64_t num_chunks, head_stride, chunk_stride;
};

// The normalisers of the list's heads over all chunks of both.
static inline void normalise(const ReturnList& l, const Tails& base, const Tails& reserve) {
  const Tails both[] = {base, reserve};
  const float none = -__builtin_inff();
  for (int64_t i = 0; i < l.heads; i += kLanes) {
    const int64_t n = l.heads - i, first = l.head_begin + i;
    F32 peak = splat(none), total = {};
    for (const Tails& t : both) {
      const float* maxima = t.maxima + first * t.head_stride;
      for (int64_t c = 0; c < t.num_chunks; ++c, maxima += t.chunk_stride) {
        peak = larger(load_heads(maxima, t.head_stride, n, none), peak);
      }
    }
    for (const Tails& t : both) {
      for (int64_t c = 0; c < t.num_chunks; ++c) {
        const int64_t place = first * t.head_stride + c * t.chunk_stride;
        const F32 weights = exp_of(load_heads(t.maxima + place, t.head_stride, n, none) - peak);
        total += without_nan(weights * load_heads(t.sums + place, t.head_stride, n, 0.0f));
      }
    }
    const F32 factor = 1.0f / (total * static_cast<float>(l.heads));
    store_first(l.row.peak + first, peak, n);
    store_first(l.row.factor + first, total > 0.0f ? factor : F32{}, n);
  }
}

// The sum of all shares of a list.
static inline float sum_shares(const ReturnList& l) {
  float all = 0.0f;
  for (int64_t c = 0; c < l.reserve.num_chunks(); ++c) {
    F32 sums = {};
    for (int64_t i = 0; i < l.heads; i += kLanes) {
      const int64_t h = l.head_begin + i, n = l.heads - i, place = c * l.num_heads + h;
      const F32 maxima = load_heads(l.row.maxima + place, 1, n, -__builtin_inff());
      const F32 peaks = load_heads(l.row.peak + h, 1, n, 0.0f);
      const F32 weights = exp_of(maxima - peaks) * load_heads(l.row.factor + h, 1, n, 0.0f);
      sums += without_nan(weights * load_heads(l.row.sums + place, 1, n, 0.0f));
    }
    all += sum_lanes(sums);
  }
  return all;
}

// At least e^x and at most 6.2 % more, for x <= 0: 2^(n + f) <= 2^n (1 + f), and a float's bits are
// n and f. Where exp_of gives 0, or x is NaN, it may be anything from 0 on.
static inline F32 bound_exp(F32 x) {
  constexpr float kOne = 8388608.0f;  // 2^23: of the exponent
  const F32 bits = multiply_add(x, splat(1.44269504f * kOne), splat(127.0f * kOne));
  return (F32) __builtin_convertvector(bits > 0.0f ? bits : F32{}, I32);
}

// A bound of the shares of every chunk; none of them is open.
static inline void bound_chunks(const ReturnList& l) {
  constexpr int kVectors = kAttentionChunk / kLanes;
  for (int64_t c = 0; c < l.reserve.num_chunks(); ++c) {
    const float* logits = l.row.logits + (c * l.num_heads + l.head_begin) * kAttentionChunk;
    F32 bounds[kVectors] = {};
    for (int64_t h = 0; h < l.heads; ++h, logits += kAttentionChunk) {
      const float peak = l.row.peak[l.head_begin + h];
      const F32 factor = splat(l.row.factor[l.head_begin + h]);
      PYDSTP_UNROLL for (int i = 0; i < kVectors; ++i) {
        bounds[i] = multiply_add(bound_exp(load(logits + i * kLanes) - peak), factor, bounds[i]);
      }
    }
    F32 highest = bounds[0];
    PYDSTP_UNROLL for (int i = 1; i < kVectors; ++i) highest = larger(bounds[i], highest);
    l.best[c] = max_lanes(highest) * 1.0001f;  // more than rounding can take away
    l.is_open[c] = 0;
  }
}

static inline bool is_candidate(const ReturnList& l, int64_t entry) {
  return entry < l.reserve.len && is_index(l.reserve.slots[entry], l.visual_capacity);
}

// Computes the shares of a chunk's entries.
static inline void open_chunk(const ReturnList& l, int64_t c) {
  const float* logits = l.row.logits + (c * l.num_heads + l.head_begin) * kAttentionChunk;
  float* shares = l.shares + c * kAttentionChunk;
  F32 peaks = splat(kNoEntry);
  for (int64_t i = 0; i < kAttentionChunk; i += kLanes) {
    F32 sums = {};
    for (int64_t h = 0; h < l.heads; ++h) {
      const F32 x = exp_of(load(logits + h * kAttentionChunk + i) - l.row.peak[l.head_begin + h]);
      sums += x * l.row.factor[l.head_begin + h];
    }
    float lanes[kLanes];
    store(lanes, without_nan(sums));
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t entry = c * kAttentionChunk + i + j;
      shares[i + j] = is_candidate(l, entry) ? lanes[j] : kNoEntry;
    }
    peaks = larger(load(shares + i), peaks);
  }
  l.best[c] = max_lanes(peaks);
  l.is_open[c] = 1;
}

// The largest share, with every chunk open that could hold it.
static inline float find_largest(const ReturnList& l) {
  const int64_t chunks = l.reserve.num_chunks();
  for (;;) {
    float largest = kNoEntry;
    for (int64_t c = 0; c < chunks; ++c) largest = max_of_two(l.best[c], largest);
    bool is_known = true;
    for (int64_t c = 0; c < chunks; ++c) {
      if (l.is_open[c] || l.best[c] < largest) continue;
      open_chunk(l, c);
      is_known = false;
    }
    if (is_known) return largest;
  }
}

// Takes the entry with this share and the lowest slot out of the competition; returns its slot.
static inline int32_t take_entry(const ReturnList& l, float share) {
  int64_t taken = -1;
  for (int64_t c = 0; c < l.reserve.num_chunks(); ++c) {
    if (l.best[c] != share) continue;
    for (int64_t i = c * kAttentionChunk; i < (c + 1) * kAttentionChunk; ++i) {
      if (l.shares[i] != share) continue;
      if (taken < 0 || l.reserve.slots[i] < l.reserve.slots[taken]) taken = i;
    }
  }
  l.shares[taken] = kTaken;
  const int64_t c = taken / kAttentionChunk;
  l.best[c] = max_of_two(largest(l.shares + c * kAttentionChunk, kAttentionChunk), kNoEntry);
  return l.reserve.slots[taken];
}

// Adds a slot to a sorted list of len.
static inline void insert_slot(int32_t* slots, int64_t len, int32_t slot) {
  for (; len > 0 && slots[len - 1] > slot; --len) slots[len] = slots[len - 1];
  slots[len] = slot;
}

// Writes the entries that return to `slots` [max_returned], ascending; returns how many.
static inline int64_t select_entries(const ReturnList& l, int32_t* slots) {
  const ReserveView& reserve = l.reserve;
  int64_t len = 0;
  if (reserve.max_returned >= reserve.len && !(reserve.mass > 0.0f)) {
    for (int64_t i = 0; i < reserve.len; ++i) {
      if (is_candidate(l, i)) insert_slot(slots, len++, reserve.slots[i]);
    }
    return len;
  }
  bound_chunks(l);
  float missing = reserve.mass > 0.0f ? sum_shares(l) : 0.0f;
  while (len < reserve.max_returned) {
    if (reserve.mass > 0.0f && missing < reserve.mass) break;
    const float share = find_largest(l);
    if (share < 0.0f) break;  // none is left
    insert_slot(slots, len++, take_entry(l, share));
    missing -= share;
  }
  return len;
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
