// Dot products of M rows with R rows at once: the inner loop of linear and of attention scores.
//
// Each of the M * R sums has its own accumulator and walks the columns in the same order, so a sum
// does not depend on M or R: that is what makes a token's result independent of its batch.
#pragma once

#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {

// A block of consecutive elements in the form the multiply-add instruction wants.
template <typename T>
struct DotBlock;

template <>
struct DotBlock<float> {
  static constexpr int kSize = kLanes;
  F32 x;
  static inline DotBlock at(const float* p) { return {load(p)}; }
  static inline F32 add(F32 sum, DotBlock a, DotBlock b) { return multiply_add(a.x, b.x, sum); }
};

template <>
struct DotBlock<BFloat16> {
  static constexpr int kSize = 2 * kLanes;

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
  __m512bh x;

  static inline DotBlock at(const BFloat16* p) {
    DotBlock block;
    memcpy(&block.x, p, sizeof(block.x));
    return block;
  }

  static inline F32 add(F32 sum, DotBlock a, DotBlock b) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, a.x, b.x);
  }
#else
  F32 odd, even;  // elements 2i + 1 and 2i in lane i: no shuffle is needed to widen them

  static inline DotBlock at(const BFloat16* p) {
    U32 pairs;
    memcpy(&pairs, p, sizeof(pairs));
    return {(F32)(pairs & 0xffff0000u), (F32)(pairs << 16)};
  }

  static inline F32 add(F32 sum, DotBlock a, DotBlock b) {
    return multiply_add(a.even, b.even, multiply_add(a.odd, b.odd, sum));
  }
#endif
};

// Adds the products of the block at `i`. The smaller side stays in registers, the other streams.
template <typename T, int M, int R>
static inline void add_block(const T* const (&a)[M], const T* const (&b)[R], int64_t i,
                             F32 (&sums)[M][R]) {
  using Block = DotBlock<T>;
  Block kept[M < R ? M : R];
  if constexpr (M <= R) {
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) kept[m] = Block::at(a[m] + i);
    PYDSTP_UNROLL for (int r = 0; r < R; ++r) {
      const Block streamed = Block::at(b[r] + i);
      PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
        sums[m][r] = Block::add(sums[m][r], kept[m], streamed);
      }
    }
  } else {
    PYDSTP_UNROLL for (int r = 0; r < R; ++r) kept[r] = Block::at(b[r] + i);
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
      const Block streamed = Block::at(a[m] + i);
      PYDSTP_UNROLL for (int r = 0; r < R; ++r) {
        sums[m][r] = Block::add(sums[m][r], streamed, kept[r]);
      }
    }
  }
}

// The block at `i` of every row when fewer than a block's elements are left: filled up with zeros.
template <typename T, int M, int R>
static inline void add_tail(const T* const (&a)[M], const T* const (&b)[R], int64_t i, int64_t size,
                            F32 (&sums)[M][R]) {
  constexpr int kSize = DotBlock<T>::kSize;
  T buffer[M + R][kSize] = {};
  const T *tail_a[M], *tail_b[R];
  const auto bytes = static_cast<size_t>(size - i) * sizeof(T);
  for (int m = 0; m < M; ++m) tail_a[m] = static_cast<T*>(memcpy(buffer[m], a[m] + i, bytes));
  for (int r = 0; r < R; ++r) tail_b[r] = static_cast<T*>(memcpy(buffer[M + r], b[r] + i, bytes));
  add_block(tail_a, tail_b, 0, sums);
}

// out[m][r] = a[m] . b[r] over `size` elements. M and R are powers of two.
template <typename T, int M, int R>
static inline void dot_rows(const T* const (&a)[M], const T* const (&b)[R], int64_t size,
                            float (&out)[M][R]) {
  constexpr int N = M * R < kLanes ? M * R : kLanes;  // sums that are folded together
  F32 sums[M][R];
  PYDSTP_UNROLL for (int i = 0; i < M * R; ++i) sums[i / R][i % R] = F32{};
  int64_t i = 0;
  for (; i + DotBlock<T>::kSize <= size; i += DotBlock<T>::kSize) add_block(a, b, i, sums);
  if (i < size) add_tail(a, b, i, size, sums);
  PYDSTP_UNROLL for (int first = 0; first < M * R; first += N) {
    F32 together[N];
    PYDSTP_UNROLL for (int j = 0; j < N; ++j) together[j] = sums[(first + j) / R][(first + j) % R];
    const F32 totals = sum_lanes_of(together);
    PYDSTP_UNROLL for (int j = 0; j < N; ++j) {
      out[(first + j) / R][(first + j) % R] = totals[j * (kLanes / N)];
    }
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
