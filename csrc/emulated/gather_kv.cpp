#include "kernels/gather_kv.cuh"

namespace pydstp {

void gather_kv_simt(const GatherKvParams& p) { launch_gather_kv(p, nullptr); }

}  // namespace pydstp
