// Grid: (tokens, blocks of kWarps heads). A warp normalises and rotates one head in place; a lane
// owns the pairs (i, i + head_dim / 2) that the rotation mixes, so no lane waits for another's
// data.
#pragma once

#include "kernels/qk_norm_rope.h"
#include "simt/simt.h"

namespace pydstp {

template <typename T>
PYDSTP_DEVICE float inverse_rms_of_head(const T* head, int64_t head_dim, float eps) {
  float squares = 0.0f;
  for (int64_t i = lane_idx(); i < head_dim / 2; i += kWarpSize) {
    const float low = to_float(head[i]), high = to_float(head[head_dim / 2 + i]);
    squares += low * low + high * high;
  }
  return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
}

// weight * (x * scale), rounded as the unfused op rounds; x itself without weights.
template <typename T>
PYDSTP_DEVICE float normalised(T x, float scale, const T* weight, int64_t i) {
  if (!weight) return to_float(x);
  return round_through<T>(to_float(weight[i]) * round_through<T>(to_float(x) * scale));
}

template <typename T>
PYDSTP_KERNEL qk_norm_rope_kernel(QkNormRopeParams p) {
  const int64_t head_idx = block_y() * num_warps() + warp_idx(), token = block_x();
  if (head_idx >= p.num_heads + p.num_kv_heads) return;  // the whole warp
  const int64_t half = p.head_dim / 2, heads_per_token = p.num_heads + 2 * p.num_kv_heads;
  T* head = static_cast<T*>(p.qkv) + (token * heads_per_token + head_idx) * p.head_dim;
  const T* weight = static_cast<const T*>(head_idx < p.num_heads ? p.q_weight : p.k_weight);
  const float* cosine = p.cos_sin + token * p.head_dim;
  const float scale = weight ? inverse_rms_of_head(head, p.head_dim, p.eps) : 1.0f;
  for (int64_t i = lane_idx(); i < half; i += kWarpSize) {
    const float low = normalised(head[i], scale, weight, i);
    const float high = normalised(head[half + i], scale, weight, half + i);
    const float c = p.float_angles ? cosine[i] : round_through<T>(cosine[i]);
    const float s = p.float_angles ? cosine[half + i] : round_through<T>(cosine[half + i]);
    assign(head[i], low * c - high * s);
    assign(head[half + i], high * c + low * s);
  }
}

inline int launch_qk_norm_rope(const QkNormRopeParams& p, void* stream) {
  constexpr int kWarps = 4;
  const Grid grid{p.num_tokens, (p.num_heads + p.num_kv_heads + kWarps - 1) / kWarps};
  switch (p.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(qk_norm_rope_kernel<float>, grid, kWarps * kWarpSize, 0, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(qk_norm_rope_kernel<BFloat16>, grid, kWarps * kWarpSize, 0, stream, p);
  }
  return 0;
}

}  // namespace pydstp
