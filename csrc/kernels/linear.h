// out = x @ weight^T + bias for few tokens, the weights read once at memory speed.
#pragma once

#include "common/dtype.h"

namespace pydstp {

class ThreadPool;

struct LinearParams {
  const void* x;       // [num_tokens, in_features], contiguous
  const void* weight;  // [out_features, in_features], contiguous
  const void* bias;    // [out_features], may be nullptr
  void* out;           // [num_tokens, out_features], contiguous; must not overlap the inputs
  int64_t num_tokens, in_features, out_features;
  DType dtype;  // of every tensor; sums are fp32
};

// A token's result does not depend on num_tokens, on the other tokens or on the number of threads.
void linear_cpu(const LinearParams& p, ThreadPool& pool);
void linear_simt(const LinearParams& p);
int linear_cuda(const LinearParams& p, void* stream);

}  // namespace pydstp
