#include "kernels/argmax.cuh"

namespace pydstp {

int argmax_cuda(const ArgmaxParams& p, void* stream) { return launch_argmax(p, stream); }

}  // namespace pydstp
