// out = round(silu(gate)) * up, the gated activation of the MLP.
#pragma once

#include "common/dtype.h"

namespace pydstp {

class ThreadPool;

struct SiluAndMulParams {
  const void* gate_up;  // [num_tokens, 2 * intermediate_size], contiguous: gate, then up
  void* out;            // [num_tokens, intermediate_size], contiguous
  int64_t num_tokens, intermediate_size;
  DType dtype;
};

void silu_and_mul_cpu(const SiluAndMulParams& p, ThreadPool& pool);
void silu_and_mul_simt(const SiluAndMulParams& p);
int silu_and_mul_cuda(const SiluAndMulParams& p, void* stream);

}  // namespace pydstp
