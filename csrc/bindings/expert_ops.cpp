// Products with a matrix per row.
#include "bindings/bind_op.h"
#include "kernels/expert_linear.h"

namespace pydstp {
namespace {

ExpertLinearParams make_expert_linear(Address x, Address weight, Address expert_idx, Address out,
                                      int64_t num_tokens, int64_t in_features, int64_t out_features,
                                      int64_t num_experts, int dtype) {
  return {{pointer(x), pointer(weight), nullptr, pointer(out), num_tokens, in_features,
           out_features, DType(dtype)},
          pointer<int32_t>(expert_idx),
          num_experts};
}

QuantisedExpertLinearParams make_quantised_expert_linear(Address x, Address codes, Address scales,
                                                         int64_t out_features, int64_t in_features,
                                                         Address expert_idx, Address out,
                                                         Address x_codes, Address x_scales,
                                                         Address x_offsets, int64_t num_tokens,
                                                         int64_t num_experts, int dtype) {
  return {{pointer(x),
           {pointer<uint8_t>(codes), pointer<BFloat16>(scales), out_features, in_features},
           pointer(out),
           pointer<int8_t>(x_codes),
           pointer<float>(x_scales),
           pointer<int32_t>(x_offsets),
           num_tokens,
           DType(dtype)},
          pointer<int32_t>(expert_idx),
          num_experts};
}

}  // namespace

void bind_expert_ops(py::module_& m) {
  PYDSTP_BIND(m, expert_linear, &make_expert_linear);
  PYDSTP_BIND(m, quantised_expert_linear, &make_quantised_expert_linear);
}

}  // namespace pydstp
