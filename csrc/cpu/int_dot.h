// Dot products of int8 vectors with codes of a few bits, of many rows of codes at once. Everything
// is exact, so the order of sums is free and every tier gives the same numbers.
#pragma once

#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int kBytes = 4 * kLanes;  // of one vector

typedef uint8_t U8 __attribute__((vector_size(kBytes)));

#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX2)
#define PYDSTP_INLINE static inline __attribute__((always_inline))  // vectors stay in registers
#else
#define PYDSTP_INLINE static inline
#endif

// The first n bytes; the others are zero and their memory is not touched.
PYDSTP_INLINE U32 load_bytes(const uint8_t* p, int64_t n) {
  U32 x = {};
  if (n >= kBytes) {
    memcpy(&x, p, sizeof(x));
    return x;
  }
#if defined(PYDSTP_TIER_AVX512BF16)
  return (U32)_mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, p);
#else
  memcpy(&x, p, static_cast<size_t>(n));
  return x;
#endif
}

// sums[i] += codes[4i] q[4i] + ... + codes[4i + 3] q[4i + 3]. Codes lie in [0, 2^kBits), q in
// [-127, 127].
template <int kBits>
PYDSTP_INLINE I32 add_products(I32 sums, U32 codes, U32 q) {
#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
  return (I32)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)q);
#elif defined(PYDSTP_TIER_AVX2)
  const __m256i weights = (__m256i)q;
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kBits < 8) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, weights);
    return sums + (I32)_mm256_madd_epi16(pairs, ones);
  } else {  // pairs of 8-bit products do not fit 16 bits
    const __m256i low = _mm256_maddubs_epi16((__m256i)(codes & 0x0f0f0f0fu), weights);
    const __m256i high = _mm256_maddubs_epi16((__m256i)(codes >> 4 & 0x0f0f0f0fu), weights);
    const __m256i sixteens = _mm256_set1_epi16(16);
    return sums + (I32)_mm256_madd_epi16(low, ones) + (I32)_mm256_madd_epi16(high, sixteens);
  }
#else
  typedef int16_t Halves __attribute__((vector_size(kBytes)));  // a product of two bytes fits
  const Halves even = (Halves)(codes & 0x00ff00ffu) * ((Halves)(q << 8) >> 8);
  const Halves odd = (Halves)(codes >> 8 & 0x00ff00ffu) * ((Halves)q >> 8);
  sums += ((I32)((U32)even << 16) >> 16) + ((I32)even >> 16);
  return sums + ((I32)((U32)odd << 16) >> 16) + ((I32)odd >> 16);
#endif
}

template <int kBits>
PYDSTP_INLINE I32 add_products(I32 sums, U32 codes, const int8_t* q) {
  U32 weights;
  memcpy(&weights, q, sizeof(weights));
  return add_products<kBits>(sums, codes, weights);
}

// Sums of (codes[i] - 128) q[i] start here; offset: -128 times the sum of all q.
PYDSTP_INLINE I32 first_sum([[maybe_unused]] int32_t offset) {
#if defined(PYDSTP_TIER_AVX2)
  return I32{};
#else
  return I32{} + offset;
#endif
}

// Adds them. Codes lie in [1, 255], q in [-127, 127].
PYDSTP_INLINE I32 add_centred_products(I32 sums, U32 codes, U32 q) {
#if defined(PYDSTP_TIER_AVX2)  // pairs of products of 7-bit magnitudes fit 16 bits
  const __m256i weights = (__m256i)(codes ^ 0x80808080u);
  const __m256i signed_q = _mm256_sign_epi8((__m256i)q, weights);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_q);
  return sums + (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  return add_products<8>(sums, codes, q);
#endif
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
