// The AVX-512 intrinsics that the CPU kernels use, in plain C++. With them the avx512bf16
// tier runs, and is tested, on any machine; only tests use it.
#pragma once

#include <cstdint>
#include <cstring>

namespace pydstp {
namespace avx512bf16_emulated {

typedef float __m512 __attribute__((vector_size(64)));
typedef int32_t __m512i __attribute__((vector_size(64)));
typedef uint32_t __m512bh __attribute__((vector_size(64)));  // lane i: elements 2i (low), 2i + 1

[[maybe_unused, gnu::noinline]] static __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  for (int i = 0; i < 16; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}

// To the nearest integer, ties to even; the instructions here and below take other modes than 0
// too.
static inline __m512 _mm512_maskz_roundscale_ps(uint16_t, __m512 x, int) {
  for (int i = 0; i < 16; ++i) x[i] = __builtin_nearbyintf(x[i]);
  return x;
}

// x less the nearest integer; 0 for infinities.
static inline __m512 _mm512_maskz_reduce_ps(uint16_t, __m512 x, int) {
  for (int i = 0; i < 16; ++i)
    x[i] = __builtin_isinf(x[i]) ? 0.0f : x[i] - __builtin_nearbyintf(x[i]);
  return x;
}

// a * 2^floor(b)
static inline __m512 _mm512_maskz_scalef_ps(uint16_t, __m512 a, __m512 b) {
  for (int i = 0; i < 16; ++i) a[i] *= __builtin_exp2f(__builtin_floorf(b[i]));
  return a;
}

// The instruction treats denormal inputs and results as zero of the same sign.
static inline float flush_denormal(float x) {
  return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x;
}

static inline float widen_half(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return flush_denormal(x);
}

// Per lane: sum + a.odd * b.odd, then that + a.even * b.even. Not inlined: kernels unroll around
// it.
[[maybe_unused, gnu::noinline]] static __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  for (int i = 0; i < 16; ++i) {
    const float odd_a = widen_half(a[i] & 0xffff0000u), odd_b = widen_half(b[i] & 0xffff0000u);
    const float even_a = widen_half(a[i] << 16), even_b = widen_half(b[i] << 16);
    const float first = flush_denormal(__builtin_fmaf(odd_a, odd_b, flush_denormal(sum[i])));
    sum[i] = flush_denormal(__builtin_fmaf(even_a, even_b, first));
  }
  return sum;
}

// Rounds to nearest even: first the elements of b, then those of a. A denormal becomes zero, a NaN
// stays one.
static inline __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
  uint16_t elements[32];
  for (int i = 0; i < 32; ++i) {
    const float x = flush_denormal(i < 16 ? b[i] : a[i - 16]);
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = x == x ? bits + 0x7fffu + (bits >> 16 & 1u) : bits | 0x400000u;
    elements[i] = static_cast<uint16_t>(rounded >> 16);
  }
  __m512bh result;
  memcpy(&result, elements, sizeof(result));
  return result;
}

// Elements 0-3 (high: 4-7) of every eight of a and of b, in turns.
static inline __m512i interleave_16(__m512i a, __m512i b, int first) {
  uint16_t of_a[32], of_b[32], elements[32];
  memcpy(of_a, &a, sizeof(of_a));
  memcpy(of_b, &b, sizeof(of_b));
  for (int i = 0; i < 32; ++i) {
    const int source = i / 8 * 8 + first + i % 8 / 2;
    elements[i] = i % 2 ? of_b[source] : of_a[source];
  }
  __m512i result;
  memcpy(&result, elements, sizeof(result));
  return result;
}

static inline __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return interleave_16(a, b, 0); }
static inline __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return interleave_16(a, b, 4); }

// Per lane: sum + four products of unsigned bytes of a with signed bytes of b.
static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  uint8_t codes[64];
  int8_t weights[64];
  memcpy(codes, &a, sizeof(codes));
  memcpy(weights, &b, sizeof(weights));
  for (int i = 0; i < 64; ++i) sum[i / 4] += codes[i] * weights[i];
  return sum;
}

}  // namespace avx512bf16_emulated
}  // namespace pydstp
