#include "kernels/qk_norm_rope.cuh"

namespace pydstp {

void qk_norm_rope_simt(const QkNormRopeParams& p) { launch_qk_norm_rope(p, nullptr); }

}  // namespace pydstp
