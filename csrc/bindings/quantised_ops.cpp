// Ops on quantised matrices.
#include "bindings/module.h"
#include "common/thread_pool.h"
#include "kernels/quantised.h"

namespace pydstp {
namespace {

QuantisedMatrix matrix(Address codes, Address scales, int64_t out_features, int64_t in_features) {
  return {pointer<uint8_t>(codes), pointer<BFloat16>(scales), out_features, in_features};
}

void quantise_rows(ThreadPool& pool, Address x, Address codes, Address scales, int64_t out_features,
                   int64_t in_features, int64_t first_row, int64_t num_rows, int dtype) {
  quantise_rows_cpu({pointer(x), matrix(codes, scales, out_features, in_features), first_row,
                     num_rows, DType(dtype)},
                    pool);
}

void dequantise_rows(ThreadPool& pool, Address codes, Address scales, int64_t out_features,
                     int64_t in_features, Address out, int64_t first_row, int64_t num_rows,
                     int dtype) {
  dequantise_rows_cpu({matrix(codes, scales, out_features, in_features), pointer(out), first_row,
                       num_rows, DType(dtype)},
                      pool);
}

void quantised_linear(ThreadPool& pool, Address x, Address codes, Address scales,
                      int64_t out_features, int64_t in_features, Address out, Address x_codes,
                      Address x_scales, Address x_offsets, int64_t num_tokens, int dtype) {
  quantised_linear_cpu({pointer(x), matrix(codes, scales, out_features, in_features), pointer(out),
                        pointer<int8_t>(x_codes), pointer<float>(x_scales),
                        pointer<int32_t>(x_offsets), num_tokens, DType(dtype)},
                       pool);
}

}  // namespace

void bind_quantised_ops(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("quantise_rows", &quantise_rows, no_gil);
  m.def("dequantise_rows", &dequantise_rows, no_gil);
  m.def("quantised_linear", &quantised_linear, no_gil);
}

}  // namespace pydstp
