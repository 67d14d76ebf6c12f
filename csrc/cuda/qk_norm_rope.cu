#include "kernels/qk_norm_rope.cuh"

namespace pydstp {

int qk_norm_rope_cuda(const QkNormRopeParams& p, void* stream) {
  return launch_qk_norm_rope(p, stream);
}

}  // namespace pydstp
