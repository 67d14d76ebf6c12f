#include "kernels/mean_kv.cuh"

namespace pydstp {

int mean_kv_cuda(const MeanKvParams& p, void* stream) { return launch_mean_kv(p, stream); }

}  // namespace pydstp
