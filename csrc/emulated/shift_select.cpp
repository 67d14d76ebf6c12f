#include "kernels/shift_select.cuh"

namespace pydstp {

void shift_select_simt(const ShiftSelectParams& p) { launch_shift_select(p, nullptr); }

}  // namespace pydstp
