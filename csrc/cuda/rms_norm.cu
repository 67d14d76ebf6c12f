#include "kernels/rms_norm.cuh"

namespace pydstp {

int rms_norm_cuda(const RmsNormParams& p, void* stream) { return launch_rms_norm(p, stream); }

}  // namespace pydstp
