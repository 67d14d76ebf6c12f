// Grid: (tokens, blocks of kThreads columns). A thread computes one element of the output.
#pragma once

#include "kernels/silu_and_mul.h"
#include "simt/simt.h"

namespace pydstp {

template <typename T>
PYDSTP_KERNEL silu_and_mul_kernel(SiluAndMulParams p) {
  const int64_t column = block_y() * num_threads() + thread_idx();
  if (column >= p.intermediate_size) return;
  const T* row = static_cast<const T*>(p.gate_up) + block_x() * 2 * p.intermediate_size;
  const float gate = to_float(row[column]), up = to_float(row[p.intermediate_size + column]);
  const float silu = round_through<T>(gate / (1.0f + expf(-gate)));
  assign(static_cast<T*>(p.out)[block_x() * p.intermediate_size + column], silu * up);
}

inline int launch_silu_and_mul(const SiluAndMulParams& p, void* stream) {
  constexpr int kThreads = 256;
  const Grid grid{p.num_tokens, (p.intermediate_size + kThreads - 1) / kThreads};
  switch (p.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(silu_and_mul_kernel<float>, grid, kThreads, 0, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(silu_and_mul_kernel<BFloat16>, grid, kThreads, 0, stream, p);
  }
  return 0;
}

}  // namespace pydstp
