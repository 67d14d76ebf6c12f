// Scores of the entries of one chunk of a reserve, from the key sketch.
#pragma once

#include "cpu/attention_chunk.h"
#include "cpu/int_dot.h"
#include "kernels/attention_return.h"

namespace pydstp {
namespace PYDSTP_TIER {

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
constexpr int kSketchHeads = 4;  // that share one walk over the codes
#else
constexpr int kSketchHeads = 2;
#endif
static_assert(kSketchBlock % kLanes == 0 && kAttentionChunk % kSketchBlock == 0, "whole vectors");

// The entries of a chunk.
struct SketchChunk {
  float bias[kAttentionChunk];  // 0, or -inf for those that name no slot and past the end
  int64_t num_entries;          // 0: none of them names a slot

  F32 finish(F32 logits, int64_t i) const {
    const F32 sums = logits + load(bias + i);
    return sums == sums ? sums : splat(-__builtin_inff());
  }
};

// A block of codes of one KV head, and its query heads, folded.
struct SketchHead {
  const uint8_t* codes;  // [head_bytes / 4, kSketchBlock, 4]
  const float* scales;   // [kSketchBlock]
  const int8_t* q8;      // [group, q8_size]
  const float* q_scale;
  const int32_t* q_sum;
  float* logits;  // [group, kAttentionChunk], of the first entry
  int64_t head_bytes;
};

template <int G>
struct HeadSums {
  I32 of[G];
};

// Sums over channels, for kLanes entries: one per lane. q8 is read by words that all lanes share.
template <int kBits, int G>
PYDSTP_INLINE HeadSums<G> dot_codes(const SketchHead& head, int64_t first) {
  constexpr int kPlanes = 8 / kBits, kSums = kPlanes > 1 ? 2 : 1;  // independent ones
  constexpr uint32_t kMask = 0x01010101u * ((1u << kBits) - 1);
  const int64_t bytes = head.head_bytes;
  I32 sums[G][kSums] = {};
  for (int64_t j = 0; j < bytes; j += 4) {
    const U32 words = load_bytes(head.codes + byte_offset(j) + 4 * first, kBytes);
    PYDSTP_UNROLL for (int plane = 0; plane < kPlanes; ++plane) {
      const U32 codes = words >> static_cast<uint32_t>(plane * kBits) & kMask;
      PYDSTP_UNROLL for (int g = 0; g < G; ++g) {
        uint32_t q;
        memcpy(&q, head.q8 + (g * kPlanes + plane) * bytes + j, sizeof(q));
        I32& sum = sums[g][plane % kSums];
        sum = add_products<kBits>(sum, codes, U32{} + q);
      }
    }
  }
  HeadSums<G> totals;
  for (int g = 0; g < G; ++g) totals.of[g] = kSums > 1 ? sums[g][0] + sums[g][1] : sums[g][0];
  return totals;
}

// Logits of G query heads for the entries of a block, which begins at entry i of the chunk.
template <int kBits, int G>
static void score_heads(const SketchChunk& chunk, const SketchHead& head, int64_t i) {
  for (int64_t first = 0; first < kSketchBlock; first += kLanes) {
    const auto sums = dot_codes<kBits, G>(head, first);
    for (int g = 0; g < G; ++g) {
      const F32 dots = __builtin_convertvector(2 * sums.of[g] - head.q_sum[g], F32);
      const F32 logits = dots * head.q_scale[g] * load(head.scales + first);
      store(head.logits + g * kAttentionChunk + first, chunk.finish(logits, i + first));
    }
  }
}

// Logits of all `group` query heads of one KV head, in the largest blocks that have a kernel.
template <int kBits>
static void score_group(const SketchChunk& chunk, SketchHead head, int64_t group, int64_t i) {
  const auto score = [&](auto score_block, int64_t count) {
    score_block(chunk, head, i);
    head.q8 += count * (8 / kBits) * head.head_bytes;
    head.q_scale += count;
    head.q_sum += count;
    head.logits += count * kAttentionChunk;
    group -= count;
  };
  while (group >= kSketchHeads) score(score_heads<kBits, kSketchHeads>, kSketchHeads);
  if (group >= 2) score(score_heads<kBits, 2>, 2);
  if (group >= 1) score(score_heads<kBits, 1>, 1);
}

// The same with 16 bits: from the keys themselves, `num_kv` KV heads from kv_begin on.
template <typename T, int G>
static void score_keys(const SketchChunk& chunk, const ChunkView<T>& c,
                       const QueryHeads<T>& heads) {
  Scores<G> scores;
  Ahead<T> ahead(c.keys(), {});
  ahead.ask_for_all();
  score_rows<T, G>(c, heads, ahead, scores);
  for (int64_t kv = 0; kv < c.num_kv; ++kv)
    for (int g = 0; g < G; ++g) {
      float* logits = heads.logits + (kv * heads.group + g) * kAttentionChunk;
      for (int64_t i = 0; i < chunk.num_entries; i += kLanes) {
        store(logits + i, chunk.finish(load(scores[kv][g] + i), i));
      }
    }
}

template <typename T>
static void score_exactly(const SketchChunk& chunk, const ChunkView<T>& c, QueryHeads<T> heads) {
  int64_t left = heads.group;
  const auto score = [&](auto score_block, int64_t count) {
    score_block(chunk, c, heads);
    heads.q += count * c.head_dim;
    heads.logits += count * kAttentionChunk;
    left -= count;
  };
  while (left >= 4) score(score_keys<T, 4>, 4);
  if (left >= 2) score(score_keys<T, 2>, 2);
  if (left >= 1) score(score_keys<T, 1>, 1);
}

// The maximum of a head's logits in a chunk, and the sum of exp(logit - maximum).
static inline void sum_logits(const float* logits, float* maximum, float* sum) {
  F32 peaks = load(logits), sums = {};
  for (int i = kLanes; i < kAttentionChunk; i += kLanes) peaks = larger(load(logits + i), peaks);
  *maximum = max_lanes(peaks);
  const bool is_empty = *maximum == -__builtin_inff();
  for (int i = 0; i < kAttentionChunk && !is_empty; i += kLanes) {
    sums += exp_of(load(logits + i) - *maximum);
  }
  *sum = sum_lanes(sums);
}

// Calls f(d, value) for vectors of q * channel_scale; channels d and d + pairs share their scale.
template <typename T, typename F>
static inline void for_each_folded(const T* q, const float* channel_scale, int64_t pairs,
                                   const F& f) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t i = 0; i < pairs; i += kLanes) {
      const F32 value = load_first(q + half * pairs + i, pairs - i);
      f(half * pairs + i, min_of(kLanes, pairs - i),
        value * load_first(channel_scale + i, pairs - i));
    }
  }
}

// One head of q as int8, in channel order; *sum is that of q8.
template <typename T>
static inline float fold_channels(const T* q, const float* channel_scale, int64_t head_dim,
                                  int8_t* q8, int32_t* sum) {
  typedef int8_t I8 __attribute__((vector_size(kLanes)));
  F32 peaks = {};
  for_each_folded(q, channel_scale, head_dim / 2, [&](int64_t, int64_t, F32 value) {
    peaks = larger(value < 0.0f ? -value : value, peaks);
  });
  const float largest = max_lanes(peaks);
  const F32 inverse = splat(largest > 0.0f ? 127.0f / largest : 0.0f);
  I32 sums = {};
  for_each_folded(q, channel_scale, head_dim / 2, [&](int64_t d, int64_t n, F32 value) {
    const F32 x = value * inverse, high = x < 127.0f ? x : splat(127.0f);
    const F32 bounded = high > -127.0f ? high : splat(-127.0f);
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const F32 rounded = x == x ? bounded + kRound - kRound : F32{};
    const I32 whole = __builtin_convertvector(rounded, I32);
    sums += whole;
    const I8 narrow = __builtin_convertvector(whole, I8);
    memcpy(q8 + d, &narrow, static_cast<size_t>(n));
  });
  *sum = 0;
  for (int i = 0; i < kLanes; ++i) *sum += sums[i];
  return largest;
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
