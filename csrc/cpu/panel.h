// Products of a few rows with packed panels of columns: both matrix products of prefill attention.
//
// Elements are packed into words of 32 bits: one float, or where the instruction set multiplies
// pairs, two bf16 elements that follow each other along the sum. A panel holds the words of up to
// kPanelVectors vectors of columns, [depth][vectors][kLanes]; panels follow each other. Each sum
// has its own accumulator and takes its words in order, so it does not depend on other rows or
// columns.
#pragma once

#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int kPanelRows = 6;
#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
constexpr int kPanelVectors = 4;  // 24 accumulators of 32 registers
#else
constexpr int kPanelVectors = 2;  // 12 of 16
#endif

// Words that are floats: T is float, or bf16 that is widened.
template <typename T>
struct WidenedWord {
  static constexpr int kElements = 1;

  // n words, at most kLanes, from elements in memory; the other lanes are zero.
  static inline F32 load_words(const T* p, int64_t n) { return load_first(p, n); }
  // Words from the elements of kElements rows, and from kElements vectors of one row.
  static inline F32 join(F32 row, F32) { return row; }
  static inline F32 round(F32 x, F32) { return x; }
  static inline F32 ones() { return splat(1.0f); }
  static inline F32 add(F32 sum, F32 a, F32 b) { return multiply_add(a, b, sum); }
  // e^x as a power of x * kPower.
  static constexpr float kPower = 1.0f;
  static inline F32 power(F32 x) { return exp_of(x); }
  static inline F32 negate(F32 words) { return -words; }
};

template <typename T>
struct Word : WidenedWord<T> {};

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
template <>
struct Word<BFloat16> {
  static constexpr int kElements = 2;

  static inline F32 load_words(const BFloat16* p, int64_t n) {
    if (n >= kLanes) return load(reinterpret_cast<const float*>(p));
    F32 words = {};
    memcpy(&words, p, static_cast<size_t>(n) * sizeof(float));
    return words;
  }

  static inline F32 join(F32 even, F32 odd) { return (F32)(((U32)even >> 16) | (U32)odd); }
  static inline F32 round(F32 x, F32 next) {
    return (F32)_mm512_cvtne2ps_pbh((__m512)next, (__m512)x);
  }
  static inline F32 ones() { return (F32)(U32{} + 0x3f803f80u); }
  static inline F32 add(F32 sum, F32 a, F32 b) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }

  // 2^x with a relative error of 1e-4, a tenth of what rounding to bf16 costs; exact for integers,
  // 0 far below, NaN stays NaN.
  static constexpr float kPower = 1.44269504f;  // of e in the base 2
  static inline F32 power(F32 x) {
    constexpr uint16_t kAllLanes = 0xffff;  // GCC warns of those without a mask
    const F32 n = (F32)_mm512_maskz_roundscale_ps(kAllLanes, (__m512)x, 0);
    const F32 r = (F32)_mm512_maskz_reduce_ps(kAllLanes, (__m512)x, 0);  // x - n, 0 if infinite
    F32 y = splat(5.500860512e-2f);
    y = multiply_add(y, r, splat(2.422110140e-1f));
    y = multiply_add(y, r, splat(6.932829618e-1f));
    y = multiply_add(y, r, splat(1.0f));
    return (F32)_mm512_maskz_scalef_ps(kAllLanes, (__m512)y, (__m512)n);
  }
  static inline F32 negate(F32 words) { return (F32)((U32)words ^ 0x80008000u); }
};
#endif

// A number of vectors that is known when a panel is compiled.
template <int N>
struct Width {
  static constexpr int kVectors = N < kPanelVectors ? N : kPanelVectors;
};

// f(first vector, Width) for each of the panels, about equally wide, that num_vectors make.
template <typename F>
static inline void for_each_panel(int64_t num_vectors, const F& f) {
  const int64_t count = ceil_div(num_vectors, kPanelVectors);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = num_vectors * i / count;
    switch (num_vectors * (i + 1) / count - first) {
      case 1:
        f(first, Width<1>());
        break;
      case 2:
        f(first, Width<2>());
        break;
      case 3:
        f(first, Width<3>());
        break;
      default:
        f(first, Width<4>());
    }
  }
}

// All lanes the same word, whatever its bits mean.
static inline F32 splat_word(const float* p) {
  uint32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return (F32)(U32{} + bits);
}

// sums[r][w] += row r of a, `depth` words, times the columns of vector w of the panel.
template <typename T, int W>
static inline void multiply_panel(const float* a, int64_t a_stride, const float* panel,
                                  int64_t depth, F32 (&sums)[kPanelRows][W]) {
  for (int64_t i = 0; i < depth; ++i) {
    F32 columns[W];
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) columns[w] = load(panel + (i * W + w) * kLanes);
    PYDSTP_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      const F32 x = splat_word(a + r * a_stride + i);
      PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
        sums[r][w] = Word<T>::add(sums[r][w], x, columns[w]);
      }
    }
  }
}

// Swaps the lanes that have bit H of a with those of b that have it not.
template <int H, int... I>
static inline void swap_lanes(F32& a, F32& b, std::integer_sequence<int, I...>) {
  const F32 low = __builtin_shufflevector(a, b, (I & H ? kLanes + I - H : I)...);
  b = __builtin_shufflevector(a, b, (I & H ? kLanes + I : I + H)...);
  a = low;
}

template <int H>
static inline void transpose(F32 (&rows)[kLanes]) {
  PYDSTP_UNROLL for (int r = 0; r < kLanes; ++r) {
    if (!(r & H)) swap_lanes<H>(rows[r], rows[r + H], Lanes());
  }
  if constexpr (H > 1) transpose<H / 2>(rows);
}

// Rows in memory; `row` of num_rows or more stands for zeros.
template <typename T>
struct RowsView {
  const T* first;
  int64_t num_rows, stride, size;

  inline F32 words(int64_t row, int64_t word) const {
    if (row >= num_rows) return F32{};
    constexpr int kElements = Word<T>::kElements;
    return Word<T>::load_words(first + row * stride + word * kElements, depth() - word);
  }
  inline F32 columns(int64_t row, int64_t column) const {
    return row < num_rows ? load_first(first + row * stride + column, size - column) : F32{};
  }
  inline int64_t depth() const { return ceil_div(size, Word<T>::kElements); }
};

// Panels whose columns are the rows: what multiplies row by row (queries times keys).
template <typename T>
static void pack_transposed(const RowsView<T>& rows, float* panels) {
  const int64_t depth = rows.depth();
  for_each_panel(ceil_div(rows.num_rows, kLanes), [&](int64_t first, auto width) {
    constexpr int W = decltype(width)::kVectors;
    for (int w = 0; w < W; ++w)
      for (int64_t word = 0; word < depth; word += kLanes) {
        F32 block[kLanes];
        PYDSTP_UNROLL for (int r = 0; r < kLanes; ++r) {
          block[r] = rows.words((first + w) * kLanes + r, word);
        }
        transpose<kLanes / 2>(block);
        float* out = panels + (first * depth + word * W + w) * kLanes;
        const int64_t count = min_of(kLanes, depth - word);
        for (int i = 0; i < count; ++i) store(out + i * W * kLanes, block[i]);
      }
  });
}

// Panels whose columns are the columns: what sums over rows (weights times values). Returns whether
// an element is infinite or NaN.
template <typename T>
static bool pack_rows(const RowsView<T>& rows, float* panels) {
  constexpr int kElements = Word<T>::kElements;
  const int64_t depth = ceil_div(rows.num_rows, kElements);
  U32 specials = {};
  for_each_panel(ceil_div(rows.size, kLanes), [&](int64_t first, auto width) {
    constexpr int W = decltype(width)::kVectors;
    float* out = panels + first * kLanes * depth;
    for (int64_t i = 0; i < depth; ++i)
      for (int w = 0; w < W; ++w, out += kLanes) {
        const F32 row = rows.columns(i * kElements, (first + w) * kLanes);
        const F32 next =
            kElements > 1 ? rows.columns(i * kElements + 1, (first + w) * kLanes) : row;
        store(out, Word<T>::join(row, next));
        specials |= (U32)(((U32)row & 0x7f800000u) == 0x7f800000u) |
                    (U32)(((U32)next & 0x7f800000u) == 0x7f800000u);
      }
  });
  uint32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= specials[lane];
  return any != 0;
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
