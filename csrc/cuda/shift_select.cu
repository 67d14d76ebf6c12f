#include "kernels/shift_select.cuh"

namespace pydstp {

int shift_select_cuda(const ShiftSelectParams& p, void* stream) {
  return launch_shift_select(p, stream);
}

}  // namespace pydstp
