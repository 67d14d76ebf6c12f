#include "kernels/mean_kv.cuh"

namespace pydstp {

void mean_kv_simt(const MeanKvParams& p) { launch_mean_kv(p, nullptr); }

}  // namespace pydstp
