// The vector vocabulary of the CPU kernels, written once on the compilers' vector types.
//
// A file that includes this is compiled once per tier with that tier's flags and everything lives
// in a namespace named after the tier (PYDSTP_TIER), so the linker keeps the tiers apart. Only the
// number of lanes, the fused multiply-add and the bf16 dot product differ between tiers.
#pragma once

#include <utility>

#if defined(PYDSTP_TIER_AVX2) || defined(PYDSTP_TIER_AVX512BF16)
#include <immintrin.h>
#elif defined(PYDSTP_TIER_AVX512BF16_EMULATED)
#include "emulated/avx512bf16.h"
#endif

#include "common/dtype.h"
#include "common/math.h"

namespace pydstp {
namespace PYDSTP_TIER {

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
constexpr int kLanes = 16;
constexpr int kAccumulators = 16;  // independent sums that fill the FMA pipes
#elif defined(PYDSTP_TIER_AVX2)
constexpr int kLanes = 8;
constexpr int kAccumulators = 8;
#else
constexpr int kLanes = 4;
constexpr int kAccumulators = 8;
#endif

// Loops over registers must be unrolled, or the registers live in memory.
#define PYDSTP_UNROLL _Pragma("GCC unroll 16")

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));

static inline F32 splat(float x) { return F32{} + x; }

static inline F32 load(const float* p) {
  F32 x;
  memcpy(&x, p, sizeof(x));
  return x;
}

static inline F32 load(const BFloat16* p) {
#if defined(PYDSTP_TIER_AVX2)  // gcc 12 converts in halves unless it is told the instruction
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (F32)((U32)_mm256_cvtepu16_epi32(bits) << 16);
#elif defined(PYDSTP_TIER_AVX512BF16)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (F32)((U32)_mm512_maskz_cvtepu16_epi32(0xffff, bits) << 16);
#else
  U16 bits;
  memcpy(&bits, p, sizeof(bits));
  return (F32)(__builtin_convertvector(bits, U32) << 16);
#endif
}

static inline void store(float* p, F32 x) { memcpy(p, &x, sizeof(x)); }

static inline void store(BFloat16* p, F32 x) {
  const U32 bits = (U32)x;
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 is_number = (U32)(x == x);
  const U16 result = __builtin_convertvector((rounded & is_number) | (0x7fc0u & ~is_number), U16);
  memcpy(p, &result, sizeof(result));
}

// The first n elements, at most kLanes; the other lanes are zero and their memory is not touched.
template <typename T>
static inline F32 load_first(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T buffer[kLanes] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}

template <typename T>
static inline void store_first(T* p, F32 x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  T buffer[kLanes];
  store(buffer, x);
  memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// a * b + c; one rounding where the tier has the instruction.
static inline F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(PYDSTP_TIER_AVX2)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// b where one is NaN.
static inline F32 larger(F32 a, F32 b) {
#if defined(PYDSTP_TIER_AVX512BF16)
  return (F32)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(PYDSTP_TIER_AVX2)
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

using Lanes = std::make_integer_sequence<int, kLanes>;

// Lane i is lane i + kBy of x, counted around.
template <int kBy, int... I>
static inline F32 rotate_lanes(F32 x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, ((I + kBy) % kLanes)...);
}

// Fold the lanes in halves, always in the same order.
template <int kHalf = kLanes / 2>
static inline float sum_lanes(F32 x) {
  x = x + rotate_lanes<kHalf>(x, Lanes());
  if constexpr (kHalf == 1)
    return x[0];
  else
    return sum_lanes<kHalf / 2>(x);
}

// Lanes of a and b folded once: those with bit kHalf clear hold sums of a, the others of b.
template <int kHalf, int... I>
static inline F32 fold_two(F32 a, F32 b, std::integer_sequence<int, I...>) {
  const F32 near = __builtin_shufflevector(a, b, (I & kHalf ? I + kLanes : I)...);
  const F32 far =
      __builtin_shufflevector(a, b, (I & kHalf ? I + kLanes : I + 2 * kHalf) - kHalf...);
  return near + far;
}

// What sum_lanes gives for each of N vectors, bit for bit: that of x[j] in lane j * kLanes / N.
template <int N, int kHalf = kLanes / 2>
static inline F32 sum_lanes_of(const F32 (&x)[N]) {
  if constexpr (kHalf == 0) {
    return x[0];
  } else if constexpr (N == 1) {
    const F32 folded[1] = {x[0] + rotate_lanes<kHalf>(x[0], Lanes())};
    return sum_lanes_of<1, kHalf / 2>(folded);
  } else {
    F32 folded[N / 2];
    PYDSTP_UNROLL for (int j = 0; j < N / 2; ++j) {
      folded[j] = fold_two<kHalf>(x[j], x[j + N / 2], Lanes());
    }
    return sum_lanes_of<N / 2, kHalf / 2>(folded);
  }
}

template <int kHalf = kLanes / 2>
static inline float max_lanes(F32 x) {
  x = larger(x, rotate_lanes<kHalf>(x, Lanes()));
  if constexpr (kHalf == 1)
    return x[0];
  else
    return max_lanes<kHalf / 2>(x);
}

static inline float max_of_two(float a, float b) { return a > b ? a : b; }

// e^x to about 2e-7 relative: 2^n * e^r with |r| <= ln(2)/2. Arguments below -87 give 0 and
// those above 88 give infinity; NaN stays NaN.
static inline F32 exp_of(F32 x) {
  const F32 bounded = x < -87.0f ? splat(-87.0f) : (x > 88.0f ? splat(88.0f) : x);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F32 n = multiply_add(bounded, splat(1.44269504f), splat(kRound)) - kRound;
  F32 r = multiply_add(n, splat(-0.693359375f), bounded);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  F32 y = splat(1.9875691500e-4f);
  y = multiply_add(y, r, splat(1.3981999507e-3f));
  y = multiply_add(y, r, splat(8.3334519073e-3f));
  y = multiply_add(y, r, splat(4.1665795894e-2f));
  y = multiply_add(y, r, splat(1.6666665459e-1f));
  y = multiply_add(y, r, splat(5.0000001201e-1f));
  y = multiply_add(y, r * r, r + 1.0f);
  const I32 exponent = __builtin_convertvector(x == x ? n : F32{}, I32);
  const F32 result = y * (F32)((exponent + 127) << 23);
  const F32 above = x > 88.0f ? splat(__builtin_inff()) : result;
  return x < -87.0f ? F32{} : above;
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
