// Whole-row helpers shared by the elementwise kernels.
#pragma once

#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {

// How many rows make a part worth waking a thread for.
static inline int64_t rows_per_part(int64_t row_size) {
  constexpr int64_t kElementsPerPart = 32768;
  return ceil_div(kElementsPerPart, max_of(1, row_size));
}

// out[i] = f(inputs[i]...) for a row of n elements; out may be one of the inputs.
template <typename T, typename F, typename... Input>
static inline void map_row(T* out, int64_t n, const F& f, const Input*... inputs) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_first(out + i, f(load_first(inputs + i, n - i)...), n - i);
  }
}

// x rounded to T, as fp32.
template <typename T>
static inline F32 round_lanes(F32 x) {
  T rounded[kLanes];
  store(rounded, x);
  return load(rounded);
}

// 1 / sqrt(mean(x^2) + eps)
template <typename T>
static inline float inverse_rms(const T* x, int64_t n, float eps) {
  F32 sums = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 values = load_first(x + i, n - i);
    sums = multiply_add(values, values, sums);
  }
  return 1.0f / __builtin_sqrtf(sum_lanes(sums) / static_cast<float>(n) + eps);
}

// out = weight * round(x * inverse_rms(x)); out may be x.
template <typename T>
static inline void rms_norm_row(const T* x, const T* weight, int64_t n, float eps, T* out) {
  const F32 scale = splat(inverse_rms(x, n, eps));
  const auto norm = [scale](F32 value, F32 w) { return w * round_lanes<T>(value * scale); };
  map_row(out, n, norm, x, weight);
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
