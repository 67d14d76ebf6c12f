// Grids as in linear.cuh and quantised_linear.cuh for blocks of one token; the weights of a block
// are those of its token's expert.
#pragma once

#include "kernels/expert_linear.h"
#include "kernels/linear.cuh"
#include "kernels/quantised_linear.cuh"

namespace pydstp {

// Sets outputs [first, first + n) of a row to zero. out: [out_features].
template <typename T>
PYDSTP_DEVICE void clear_outputs(T* out, int64_t first, int64_t n, int64_t out_features) {
  const int64_t i = first + thread_idx();
  if (thread_idx() < n && i < out_features) assign(out[i], 0.0f);
}

template <typename T, bool kIsAligned>
PYDSTP_KERNEL expert_linear_kernel(ExpertLinearParams p) {
  constexpr int64_t kRows = kLinearThreads / kWarpSize * (kIsAligned ? kLinearRows<1> : 1);
  const int64_t token = block_y(), expert = p.expert_idx[token];
  if (!is_index(expert, p.num_experts)) {  // the whole block
    T* out = static_cast<T*>(p.rows.out) + token * p.rows.out_features;
    return clear_outputs(out, block_x() * kRows, kRows, p.rows.out_features);
  }
  const int64_t size = p.rows.out_features * p.rows.in_features;
  p.rows.weight = static_cast<const T*>(p.rows.weight) + expert * size;
  if constexpr (kIsAligned) {
    multiply_rows<T, 1>(p.rows, token);
  } else {
    multiply_any_row<T>(p.rows, token);
  }
}

template <typename T>
PYDSTP_KERNEL quantised_expert_linear_kernel(QuantisedExpertLinearParams p) {
  PYDSTP_SHARED(float, terms);  // [kRunGroups, kTileRows]
  QuantisedMatrix& m = p.rows.weight;
  const int64_t token = block_y(), expert = p.expert_idx[token];
  if (!is_index(expert, p.num_experts)) {  // the whole block
    T* out = static_cast<T*>(p.rows.out) + token * m.out_features;
    return clear_outputs(out, block_x() * kTileRows, kTileRows, m.out_features);
  }
  const int64_t groups = m.num_tiles() * m.num_groups();
  m.codes += expert * groups * kGroupBytes;
  m.scales += expert * groups * kTileRows;
  multiply_tile<T, 1>(p.rows, token, terms);
}

template <typename T>
int launch_expert_linear_of(const ExpertLinearParams& p, void* stream) {
  constexpr int64_t kWarps = kLinearThreads / kWarpSize;
  const LinearParams& rows = p.rows;
  if (!is_aligned<T>(rows)) {
    const Grid grid{ceil_div(rows.out_features, kWarps), rows.num_tokens};
    return PYDSTP_LAUNCH((expert_linear_kernel<T, false>), grid, kLinearThreads, 0, stream, p);
  }
  const Grid grid{ceil_div(rows.out_features, kWarps * kLinearRows<1>), rows.num_tokens};
  return PYDSTP_LAUNCH((expert_linear_kernel<T, true>), grid, kLinearThreads, 0, stream, p);
}

inline int launch_expert_linear(const ExpertLinearParams& p, void* stream) {
  switch (p.rows.dtype) {
    case DType::kFloat32:
      return launch_expert_linear_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_expert_linear_of<BFloat16>(p, stream);
  }
  return 0;
}

template <typename T>
int launch_quantised_expert_linear_of(const QuantisedExpertLinearParams& p, void* stream) {
  const int status = launch_quantise_tokens<T>(p.rows, stream);
  if (status != 0) return status;
  constexpr int64_t kBytes = kRunGroups * kTileRows * sizeof(float);
  const Grid grid{p.rows.weight.num_tiles(), p.rows.num_tokens};
  return PYDSTP_LAUNCH(quantised_expert_linear_kernel<T>, grid, kProductThreads, kBytes, stream, p);
}

inline int launch_quantised_expert_linear(const QuantisedExpertLinearParams& p, void* stream) {
  switch (p.rows.dtype) {
    case DType::kFloat32:
      return launch_quantised_expert_linear_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_quantised_expert_linear_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
