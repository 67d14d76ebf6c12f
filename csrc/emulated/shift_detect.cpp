#include "kernels/shift_detect.cuh"

namespace pydstp {

void shift_detect_simt(const ShiftDetectParams& p) { launch_shift_detect(p, nullptr); }

}  // namespace pydstp
