// Ops on quantised matrices.
#include "bindings/bind_op.h"
#include "kernels/quantised.h"

namespace pydstp {
namespace {

QuantisedMatrix matrix(Address codes, Address scales, int64_t out_features, int64_t in_features) {
  return {pointer<uint8_t>(codes), pointer<BFloat16>(scales), out_features, in_features};
}

QuantiseRowsParams make_quantise_rows(Address x, Address codes, Address scales,
                                      int64_t out_features, int64_t in_features, int64_t first_row,
                                      int64_t num_rows, int dtype) {
  return {pointer(x), matrix(codes, scales, out_features, in_features), first_row, num_rows,
          DType(dtype)};
}

DequantiseRowsParams make_dequantise_rows(Address codes, Address scales, int64_t out_features,
                                          int64_t in_features, Address out, int64_t first_row,
                                          int64_t num_rows, int dtype) {
  return {matrix(codes, scales, out_features, in_features), pointer(out), first_row, num_rows,
          DType(dtype)};
}

QuantisedLinearParams make_quantised_linear(Address x, Address codes, Address scales,
                                            int64_t out_features, int64_t in_features, Address out,
                                            Address x_codes, Address x_scales, Address x_offsets,
                                            int64_t num_tokens, int dtype) {
  return {pointer(x),
          matrix(codes, scales, out_features, in_features),
          pointer(out),
          pointer<int8_t>(x_codes),
          pointer<float>(x_scales),
          pointer<int32_t>(x_offsets),
          num_tokens,
          DType(dtype)};
}

}  // namespace

void bind_quantised_ops(py::module_& m) {
  PYDSTP_BIND(m, quantise_rows, &make_quantise_rows);
  PYDSTP_BIND(m, dequantise_rows, &make_dequantise_rows);
  PYDSTP_BIND(m, quantised_linear, &make_quantised_linear);
}

}  // namespace pydstp
