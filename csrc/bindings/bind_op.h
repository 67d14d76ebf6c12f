// Makes an op callable from Python: NAME(pool, ...) on the CPU and, in builds with CUDA,
// NAME_cuda(stream, ...), which returns the CUDA status. Both take the arguments of `make`, which
// gives the params.
#pragma once

#include <string>

#include "bindings/module.h"
#include "common/thread_pool.h"

#ifdef PYDSTP_WITH_CUDA
#define PYDSTP_CUDA_LAUNCHER(op) &op##_cuda
#else
#define PYDSTP_CUDA_LAUNCHER(op) nullptr
#endif

// The launchers of an op whose GPU version is among the kernels.
#define PYDSTP_BIND(m, op, make) bind_op(m, #op, make, &op##_cpu, PYDSTP_CUDA_LAUNCHER(op))

namespace pydstp {

template <typename Params>
struct Cuda {
  using Launcher = int (*)(const Params&, void* stream);
};

template <typename Params, typename... Args>
void bind_cpu_op(py::module_& m, const char* name, Params (*make)(Args...),
                 void (*cpu)(const Params&, ThreadPool&)) {
  const auto run = [make, cpu](ThreadPool& pool, Args... args) { cpu(make(args...), pool); };
  m.def(name, run, py::call_guard<py::gil_scoped_release>());
}

template <typename Params, typename... Args>
void bind_op(py::module_& m, const char* name, Params (*make)(Args...),
             void (*cpu)(const Params&, ThreadPool&), typename Cuda<Params>::Launcher cuda) {
  bind_cpu_op(m, name, make, cpu);
  if (!cuda) return;
  const auto launch = [make, cuda](Address stream, Args... args) {
    return cuda(make(args...), pointer(stream));
  };
  m.def((std::string(name) + "_cuda").c_str(), launch, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pydstp
