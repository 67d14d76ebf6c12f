#include "kernels/linear.cuh"

namespace pydstp {

void linear_simt(const LinearParams& p) { launch_linear(p, nullptr); }

}  // namespace pydstp
