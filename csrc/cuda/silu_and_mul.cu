#include "kernels/silu_and_mul.cuh"

namespace pydstp {

int silu_and_mul_cuda(const SiluAndMulParams& p, void* stream) {
  return launch_silu_and_mul(p, stream);
}

}  // namespace pydstp
