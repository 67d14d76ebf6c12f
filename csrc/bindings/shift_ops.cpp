// Ops of the shift policy: addresses in, params out.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bind_op.h"
#include "kernels/shift.h"

namespace pydstp {
namespace {

// The arrays of ShiftState in their order there.
using StateAddresses = std::array<Address, 17>;

ShiftState make_state(const StateAddresses& a, int64_t max_batch, int64_t capacity) {
  return {pointer<float>(a[0]),
          pointer<float>(a[1]),
          pointer<float>(a[2]),
          pointer<uint8_t>(a[3]),
          pointer<int32_t>(a[4]),
          pointer<int32_t>(a[5]),
          pointer<int32_t>(a[6]),
          pointer<int32_t>(a[7]),
          pointer<int32_t>(a[8]),
          pointer<int32_t>(a[9]),
          pointer<float>(a[10]),
          pointer<double>(a[11]),
          pointer<int32_t>(a[12]),
          pointer<int32_t>(a[13]),
          pointer<float>(a[14]),
          pointer<int32_t>(a[15]),
          pointer<int32_t>(a[16]),
          max_batch,
          capacity};
}

ShiftDetectParams make_detect(const StateAddresses& state, int64_t max_batch, int64_t capacity,
                              Address seq_idx, Address status, int64_t batch, int phase) {
  return {make_state(state, max_batch, capacity), pointer<int32_t>(seq_idx),
          pointer<int32_t>(status), batch, phase};
}

ShiftSelectParams make_select(const StateAddresses& state, int64_t max_batch, int64_t capacity,
                              Address seq_idx, Address visible_indices, Address visible_len,
                              Address status, int64_t batch, int64_t num_groups,
                              int64_t list_capacity, int64_t group_idx, Address mass,
                              int64_t num_heads) {
  return {make_state(state, max_batch, capacity),
          pointer<int32_t>(seq_idx),
          pointer<int32_t>(visible_indices),
          pointer<int32_t>(visible_len),
          pointer<int32_t>(status),
          batch,
          num_groups,
          list_capacity,
          group_idx,
          pointer<float>(mass),
          num_heads};
}

}  // namespace

void bind_shift_ops(py::module_& m) {
  PYDSTP_BIND(m, shift_detect, &make_detect);
  PYDSTP_BIND(m, shift_select, &make_select);
}

}  // namespace pydstp
