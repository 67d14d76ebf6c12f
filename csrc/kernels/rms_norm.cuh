// Grid: one block per token. A block adds the residual, sums the squares of its row in fp32 and
// writes the normalised row. Shared memory: one float per warp.
#pragma once

#include "kernels/block_sum.cuh"
#include "kernels/rms_norm.h"

namespace pydstp {

template <typename T>
PYDSTP_KERNEL rms_norm_kernel(RmsNormParams p) {
  PYDSTP_SHARED(float, scratch);
  const int64_t first = block_x() * p.hidden_size;
  const T* x = static_cast<const T*>(p.x) + first;
  T* residual = p.residual ? static_cast<T*>(p.residual) + first : nullptr;
  float squares = 0.0f;
  for (int64_t i = thread_idx(); i < p.hidden_size; i += num_threads()) {
    float value = to_float(x[i]);
    if (residual) {
      assign(residual[i], to_float(residual[i]) + value);
      value = to_float(residual[i]);
    }
    squares += value * value;
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(p.hidden_size);
  const float scale = 1.0f / sqrtf(mean + p.eps);
  const T* source = residual ? residual : x;  // each thread reads back only what it wrote
  for (int64_t i = thread_idx(); i < p.hidden_size; i += num_threads()) {
    const float quotient = round_through<T>(to_float(source[i]) * scale);
    assign(static_cast<T*>(p.out)[first + i],
           to_float(static_cast<const T*>(p.weight)[i]) * quotient);
  }
}

inline int launch_rms_norm(const RmsNormParams& p, void* stream) {
  constexpr int kThreads = 128;
  constexpr int64_t kSharedBytes = kThreads / kWarpSize * sizeof(float);
  const Grid grid{p.num_tokens};
  switch (p.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(rms_norm_kernel<float>, grid, kThreads, kSharedBytes, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(rms_norm_kernel<BFloat16>, grid, kThreads, kSharedBytes, stream, p);
  }
  return 0;
}

}  // namespace pydstp
