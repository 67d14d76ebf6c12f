// Ops on activations: addresses in, params out.
#include "bindings/bind_op.h"
#include "kernels/argmax.h"
#include "kernels/attention_sums.h"
#include "kernels/linear.h"
#include "kernels/prefill_attention.h"
#include "kernels/qk_norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/silu_and_mul.h"

namespace pydstp {
namespace {

LinearParams make_linear(Address x, Address weight, Address bias, Address out, int64_t num_tokens,
                         int64_t in_features, int64_t out_features, int dtype) {
  return {pointer(x), pointer(weight), pointer(bias), pointer(out),
          num_tokens, in_features,     out_features,  DType(dtype)};
}

RmsNormParams make_rms_norm(Address x, Address weight, Address residual, Address out,
                            int64_t num_tokens, int64_t hidden_size, float eps, int dtype) {
  return {pointer(x), pointer(weight), pointer(residual), pointer(out), num_tokens, hidden_size,
          eps,        DType(dtype)};
}

SiluAndMulParams make_silu_and_mul(Address gate_up, Address out, int64_t num_tokens,
                                   int64_t intermediate_size, int dtype) {
  return {pointer(gate_up), pointer(out), num_tokens, intermediate_size, DType(dtype)};
}

QkNormRopeParams make_qk_norm_rope(Address qkv, Address q_weight, Address k_weight, Address cos_sin,
                                   int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
                                   int64_t head_dim, float eps, int dtype, bool float_angles) {
  return {pointer(qkv), pointer(q_weight), pointer(k_weight), pointer<float>(cos_sin),
          num_tokens,   num_heads,         num_kv_heads,      head_dim,
          eps,          DType(dtype),      float_angles};
}

ArgmaxParams make_argmax(Address x, Address values, Address indices, Address out, int64_t num_rows,
                         int64_t size, int dtype) {
  return {pointer(x),
          pointer<float>(values),
          pointer<int32_t>(indices),
          pointer<int32_t>(out),
          num_rows,
          size,
          DType(dtype)};
}

PrefillAttentionParams make_prefill_attention(Address q, Address k, Address v, Address segments,
                                              Address visible_len, Address workspace, Address out,
                                              int64_t num_queries, int64_t num_keys,
                                              int64_t num_heads, int64_t num_kv_heads,
                                              int64_t head_dim, int64_t num_segments,
                                              int64_t q_stride, int64_t k_stride, int64_t v_stride,
                                              float scale, int dtype) {
  return {pointer(q),
          pointer(k),
          pointer(v),
          pointer<int32_t>(segments),
          pointer<int32_t>(visible_len),
          pointer<float>(workspace),
          pointer(out),
          num_queries,
          num_keys,
          num_heads,
          num_kv_heads,
          head_dim,
          num_segments,
          q_stride,
          k_stride,
          v_stride,
          scale,
          DType(dtype)};
}

AttentionSumsParams make_attention_sums(Address q, Address k, Address visible_len,
                                        Address workspace, Address out, int64_t num_queries,
                                        int64_t num_keys, int64_t num_heads, int64_t num_kv_heads,
                                        int64_t head_dim, int64_t num_parts, int64_t q_stride,
                                        int64_t k_stride, float scale, int dtype, bool per_row,
                                        bool without_last) {
  return {pointer(q),
          pointer(k),
          pointer<int32_t>(visible_len),
          pointer<float>(workspace),
          pointer<float>(out),
          num_queries,
          num_keys,
          num_heads,
          num_kv_heads,
          head_dim,
          num_parts,
          q_stride,
          k_stride,
          scale,
          DType(dtype),
          per_row,
          without_last};
}

}  // namespace

void bind_dense_ops(py::module_& m) {
  PYDSTP_BIND(m, linear, &make_linear);
  PYDSTP_BIND(m, rms_norm, &make_rms_norm);
  PYDSTP_BIND(m, silu_and_mul, &make_silu_and_mul);
  PYDSTP_BIND(m, qk_norm_rope, &make_qk_norm_rope);
  PYDSTP_BIND(m, argmax, &make_argmax);
  bind_cpu_op(m, "prefill_attention", &make_prefill_attention, &prefill_attention_cpu);
  m.def("prefill_workspace_size", &prefill_workspace_size);
  bind_cpu_op(m, "attention_sums", &make_attention_sums, &attention_sums_cpu);
  m.def("attention_sums_workspace_size", &attention_sums_workspace_size);
}

}  // namespace pydstp
