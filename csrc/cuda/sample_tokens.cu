#include "kernels/sample_tokens.cuh"

namespace pydstp {

int sample_tokens_cuda(const SampleTokensParams& p, void* stream) {
  return launch_sample_tokens(p, stream);
}

}  // namespace pydstp
