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
  U32 pairs;  // lane i holds elements 2i (low half) and 2i + 1 (high half)

  static inline DotBlock at(const BFloat16* p) {
    DotBlock block;
    memcpy(&block.pairs, p, sizeof(block.pairs));
    return block;
  }

  static inline F32 add(F32 sum, DotBlock a, DotBlock b) {
#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_EMULATED)
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a.pairs, (__m512bh)b.pairs);
#else
    sum = multiply_add((F32)(a.pairs & 0xffff0000u), (F32)(b.pairs & 0xffff0000u), sum);
    return multiply_add((F32)(a.pairs << 16), (F32)(b.pairs << 16), sum);
#endif
  }
};

template <typename T, int M, int R>
static inline void dot_rows(const T* const (&a)[M], const T* const (&b)[R], int64_t size,
                            float (&out)[M][R]) {
  using Block = DotBlock<T>;
  F32 sums[M][R] = {};
  const auto add_block = [&sums](const Block(&block_a)[M], const Block(&block_b)[R]) {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) sums[m][r] = Block::add(sums[m][r], block_a[m], block_b[r]);
  };
  Block block_a[M], block_b[R];
  int64_t i = 0;
  for (; i + Block::kSize <= size; i += Block::kSize) {
    for (int m = 0; m < M; ++m) block_a[m] = Block::at(a[m] + i);
    for (int r = 0; r < R; ++r) block_b[r] = Block::at(b[r] + i);
    add_block(block_a, block_b);
  }
  if (i < size) {
    const auto tail = [i, size](const T* row) {
      T buffer[Block::kSize] = {};
      memcpy(buffer, row + i, static_cast<size_t>(size - i) * sizeof(T));
      return Block::at(buffer);
    };
    for (int m = 0; m < M; ++m) block_a[m] = tail(a[m]);
    for (int r = 0; r < R; ++r) block_b[r] = tail(b[r]);
    add_block(block_a, block_b);
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) out[m][r] = sum_lanes(sums[m][r]);
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
