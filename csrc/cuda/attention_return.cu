#include "kernels/attention_return.cuh"

namespace pydstp {

int attention_return_cuda(const AttentionReturnParams& p, void* stream) {
  return launch_attention_return(p, stream);
}

}  // namespace pydstp
