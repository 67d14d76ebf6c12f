#include "kernels/shift_detect.cuh"

namespace pydstp {

int shift_detect_cuda(const ShiftDetectParams& p, void* stream) {
  return launch_shift_detect(p, stream);
}

}  // namespace pydstp
