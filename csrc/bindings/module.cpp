// The extension module: tensors come as addresses and sizes, checked by pydstp/ops/.
#include "bindings/module.h"

#include <pybind11/stl.h>
#include <sys/mman.h>

#include "common/thread_pool.h"
#include "cpu/dispatch.h"
#include "cuda/runtime.h"

namespace pydstp {
namespace {

// A wish: whether the system can grant it makes no difference to a caller.
void advise_huge_pages([[maybe_unused]] Address address, [[maybe_unused]] size_t num_bytes) {
#ifdef MADV_HUGEPAGE
  madvise(pointer(address), num_bytes, MADV_HUGEPAGE);
#endif
}

void bind_runtime(py::module_& m) {
  py::class_<ThreadPool>(m, "ThreadPool")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads)
      .def("close", &ThreadPool::close, py::call_guard<py::gil_scoped_release>());
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("available_tiers", &available_tiers);
  m.def("current_tier", &current_tier);
  m.def("set_tier", &set_tier);
#ifdef PYDSTP_WITH_SIMT
  m.def("set_simt_seed", &set_simt_seed);
#endif
#ifdef PYDSTP_WITH_CUDA
  m.def("cuda_status", &cuda_status);
  m.def("cuda_error", &cuda_error);
  m.def("cuda_architectures", &cuda_architectures);
#endif
  m.def("cpu_features", [] {
    py::dict features;
    for (const auto& [name, has] : cpu_features()) features[name.c_str()] = has;
    return features;
  });
}

}  // namespace
}  // namespace pydstp

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of pydstp; call them through pydstp.ops.";
  pydstp::bind_runtime(m);
  pydstp::bind_dense_ops(m);
  pydstp::bind_cache_ops(m);
  pydstp::bind_shift_ops(m);
  pydstp::bind_return_ops(m);
  pydstp::bind_quantised_ops(m);
  pydstp::bind_sampling_ops(m);
  pydstp::bind_expert_ops(m);
}
