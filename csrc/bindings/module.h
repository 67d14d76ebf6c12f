#pragma once

#include <pybind11/pybind11.h>

namespace pydstp {

namespace py = pybind11;

// A tensor's data_ptr(); 0 stands for None.
using Address = uintptr_t;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_dense_ops(py::module_& m);
void bind_cache_ops(py::module_& m);
void bind_shift_ops(py::module_& m);
void bind_return_ops(py::module_& m);
void bind_quantised_ops(py::module_& m);
void bind_sampling_ops(py::module_& m);
void bind_expert_ops(py::module_& m);

}  // namespace pydstp
