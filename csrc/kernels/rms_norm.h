// out = weight * round(x / sqrt(mean(x^2) + eps)), with an optional residual sum in front.
#pragma once

#include "common/dtype.h"

namespace pydstp {

class ThreadPool;

struct RmsNormParams {
  const void* x;       // [num_tokens, hidden_size], contiguous
  const void* weight;  // [hidden_size]
  void* residual;      // [num_tokens, hidden_size] or nullptr; becomes residual + x, rounded to
                       // dtype, and is then what is normalised
  void* out;           // [num_tokens, hidden_size]; may be x
  int64_t num_tokens, hidden_size;
  float eps;
  DType dtype;  // of every tensor; statistics are fp32, the quotient is rounded before the product
};

void rms_norm_cpu(const RmsNormParams& p, ThreadPool& pool);
void rms_norm_simt(const RmsNormParams& p);
int rms_norm_cuda(const RmsNormParams& p, void* stream);

}  // namespace pydstp
