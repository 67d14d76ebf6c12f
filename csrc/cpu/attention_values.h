// Sums over rows of V of one KV head, weighted for all its query heads.
#pragma once

#include "cpu/ahead.h"
#include "cpu/dot.h"
#include "kernels/decode_attention.h"

namespace pydstp {
namespace PYDSTP_TIER {

// V of some cache rows, and where its sums go. What comes next is asked for as fast as V is read.
template <typename T>
struct ValueRows {
  const T* const* rows;  // [num_rows]
  int num_rows;
  int64_t offset;    // of V in a row
  int64_t head_dim;  // columns
  float* out;        // [G, out_stride], head_dim of each are written
  int64_t out_stride;
  Ahead<T>* ahead;
};

// Columns [i, i + n) for p [G, kAttentionChunk], in W vectors. The last vector of a row may be
// partial (W is 1 then).
template <typename T, int G, int W, bool kIsWhole = true>
static inline void weigh_columns(const ValueRows<T>& v, const float* p, int64_t i, int64_t n) {
  F32 sums[G][W];
  PYDSTP_UNROLL for (int j = 0; j < G * W; ++j) sums[j / W][j % W] = F32{};
  constexpr int kRead = W * kLanes * static_cast<int>(sizeof(T));
  constexpr int kAskEvery = kRead < kAskedBytes ? kAskedBytes / kRead : 1;
  const int64_t count = kIsWhole ? kLanes : n;
  for (int row = 0; row < v.num_rows; ++row) {
    if (row % kAskEvery == 0) v.ahead->ask();
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      const F32 x = load_first(v.rows[row] + v.offset + i + w * kLanes, count);
      PYDSTP_UNROLL for (int g = 0; g < G; ++g) {
        sums[g][w] = multiply_add(splat(p[g * kAttentionChunk + row]), x, sums[g][w]);
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int w = 0; w < W; ++w) {
      store_first(v.out + g * v.out_stride + i + w * kLanes, sums[g][w], count);
    }
}

// Columns from i on.
template <typename T, int G>
static inline void weigh_from(const ValueRows<T>& v, const float* p, int64_t i) {
  constexpr int W = G > 2 ? (G > 4 ? 1 : 2) : 4;
  const int64_t n = v.head_dim;
  for (; i + W * kLanes <= n; i += W * kLanes) weigh_columns<T, G, W>(v, p, i, n - i);
  for (; i < n; i += kLanes) weigh_columns<T, G, 1, false>(v, p, i, n - i);
}

// out[g] = the sum over rows of p[g, row] * v[row], with p [G, kAttentionChunk], which is 0 from
// num_rows on.
template <int G>
static inline void weigh_rows(const ValueRows<float>& v, const float* p) {
  weigh_from<float, G>(v, p, 0);
}

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)

// Two rows at a time, their columns interleaved, by the instruction that multiplies pairs: p is
// rounded to bfloat16 for it, once, and V is never widened.
struct ValuePair {
  DotBlock<BFloat16> low, high;  // columns 0-3, 8-11, 16-19, 24-27 of 32; and the others

  ValuePair(const BFloat16* first, const BFloat16* second) {
    const __m512i a = load_bits(first), b = second ? load_bits(second) : __m512i{};
    low.x = (__m512bh)_mm512_unpacklo_epi16(a, b);
    high.x = (__m512bh)_mm512_unpackhi_epi16(a, b);
  }

  static inline __m512i load_bits(const BFloat16* p) {
    __m512i bits;
    memcpy(&bits, p, sizeof(bits));
    return bits;
  }
};

// Columns [i, i + 32 W) for pairs [G, kAttentionChunk / 2] of p.
template <int G, int W>
static inline void weigh_pairs(const ValueRows<BFloat16>& v, const uint32_t* pairs, int64_t i) {
  F32 sums[G][W][2];
  PYDSTP_UNROLL for (int j = 0; j < 2 * G * W; ++j) sums[j / 2 / W][j / 2 % W][j % 2] = F32{};
  const auto add = [&](const BFloat16* first, const BFloat16* second, int row) {
    v.ahead->ask();
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      const int64_t column = v.offset + i + 32 * w;
      const ValuePair x(first + column, second ? second + column : nullptr);
      PYDSTP_UNROLL for (int g = 0; g < G; ++g) {
        const DotBlock<BFloat16> p{(__m512bh)(U32{} + pairs[(g * kAttentionChunk + row) / 2])};
        sums[g][w][0] = DotBlock<BFloat16>::add(sums[g][w][0], x.low, p);
        sums[g][w][1] = DotBlock<BFloat16>::add(sums[g][w][1], x.high, p);
      }
    }
  };
  int row = 0;
  for (; row + 2 <= v.num_rows; row += 2) add(v.rows[row], v.rows[row + 1], row);
  if (row < v.num_rows) add(v.rows[row], nullptr, row);
  for (int g = 0; g < G; ++g)
    for (int w = 0; w < W; ++w) {
      float* out = v.out + g * v.out_stride + i + 32 * w;
      const F32 low = sums[g][w][0], high = sums[g][w][1];
      store(out, __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21,
                                         22, 23));
      store(out + kLanes, __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13,
                                                  14, 15, 28, 29, 30, 31));
    }
}

template <int G>
static inline void weigh_rows(const ValueRows<BFloat16>& v, const float* p) {
  constexpr int W = G > 4 ? 1 : 2;
  alignas(64) uint32_t pairs[G * kAttentionChunk / 2];
  for (int j = 0; j < G * kAttentionChunk; j += 2 * kLanes) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)load(p + j + kLanes), (__m512)load(p + j));
    memcpy(pairs + j / 2, &rounded, sizeof(rounded));
  }
  int64_t i = 0;
  for (; i + 32 * W <= v.head_dim; i += 32 * W) weigh_pairs<G, W>(v, pairs, i);
  weigh_from<BFloat16, G>(v, p, i);
}

#else

template <int G>
static inline void weigh_rows(const ValueRows<BFloat16>& v, const float* p) {
  weigh_from<BFloat16, G>(v, p, 0);
}

#endif

}  // namespace PYDSTP_TIER
}  // namespace pydstp
