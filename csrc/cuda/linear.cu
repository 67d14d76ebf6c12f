#include "kernels/linear.cuh"

namespace pydstp {

int linear_cuda(const LinearParams& p, void* stream) { return launch_linear(p, stream); }

}  // namespace pydstp
