#include "kernels/gather_kv.cuh"

namespace pydstp {

int gather_kv_cuda(const GatherKvParams& p, void* stream) { return launch_gather_kv(p, stream); }

}  // namespace pydstp
