#include "kernels/argmax.cuh"

namespace pydstp {

void argmax_simt(const ArgmaxParams& p) { launch_argmax(p, nullptr); }

}  // namespace pydstp
