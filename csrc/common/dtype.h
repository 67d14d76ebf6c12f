// Element types of the kernels and their conversions.
//
// Everything here has internal linkage on purpose: files that are compiled with different
// instruction sets include it, and the linker must never merge one tier's copy into another.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PYDSTP_HOST_DEVICE __host__ __device__
#else
#define PYDSTP_HOST_DEVICE
#endif

namespace pydstp {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

struct BFloat16 {
  uint16_t bits;
};

static inline PYDSTP_HOST_DEVICE float to_float(float x) { return x; }

static inline PYDSTP_HOST_DEVICE float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

static inline PYDSTP_HOST_DEVICE void assign(float& out, float x) { out = x; }

// Round to nearest even; every NaN becomes the quiet NaN 0x7fc0, as torch does.
static inline PYDSTP_HOST_DEVICE void assign(BFloat16& out, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = x == x ? static_cast<uint16_t>(rounded) : static_cast<uint16_t>(0x7fc0u);
}

// x as it looks after a round trip through T.
template <typename T>
static inline PYDSTP_HOST_DEVICE float round_through(float x) {
  T rounded;
  assign(rounded, x);
  return to_float(rounded);
}

}  // namespace pydstp
