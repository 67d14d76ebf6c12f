// RMSNorm over head_dim and rotate-half RoPE on the q and k heads of a fused projection, in place.
#pragma once

#include "common/dtype.h"

namespace pydstp {

class ThreadPool;

struct QkNormRopeParams {
  void* qkv;             // [num_tokens, num_heads + 2 * num_kv_heads, head_dim], contiguous;
                         // the first num_heads + num_kv_heads heads of a token are rewritten
  const void* q_weight;  // [head_dim] or nullptr: q is not normalised
  const void* k_weight;  // [head_dim] or nullptr: k is not normalised
  const float* cos_sin;  // [num_tokens, head_dim]: cos of the head_dim/2 angles, then their sin
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;  // head_dim is even
  float eps;
  DType dtype;                // of qkv and the weights
  bool float_angles = false;  // cos and sin as they are, else rounded to dtype before use
};

void qk_norm_rope_cpu(const QkNormRopeParams& p, ThreadPool& pool);
void qk_norm_rope_simt(const QkNormRopeParams& p);
int qk_norm_rope_cuda(const QkNormRopeParams& p, void* stream);

}  // namespace pydstp
