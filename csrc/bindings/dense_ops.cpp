// Ops on activations: addresses in, params out.
#include "bindings/module.h"
#include "common/thread_pool.h"
#include "kernels/linear.h"
#include "kernels/prefill_attention.h"
#include "kernels/qk_norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/silu_and_mul.h"

namespace pydstp {
namespace {

void linear(ThreadPool& pool, Address x, Address weight, Address bias, Address out,
            int64_t num_tokens, int64_t in_features, int64_t out_features, int dtype) {
  linear_cpu({pointer(x), pointer(weight), pointer(bias), pointer(out), num_tokens, in_features,
              out_features, DType(dtype)},
             pool);
}

void rms_norm(ThreadPool& pool, Address x, Address weight, Address residual, Address out,
              int64_t num_tokens, int64_t hidden_size, float eps, int dtype) {
  rms_norm_cpu({pointer(x), pointer(weight), pointer(residual), pointer(out), num_tokens,
                hidden_size, eps, DType(dtype)},
               pool);
}

void silu_and_mul(ThreadPool& pool, Address gate_up, Address out, int64_t num_tokens,
                  int64_t intermediate_size, int dtype) {
  silu_and_mul_cpu({pointer(gate_up), pointer(out), num_tokens, intermediate_size, DType(dtype)},
                   pool);
}

void qk_norm_rope(ThreadPool& pool, Address qkv, Address q_weight, Address k_weight,
                  Address cos_sin, int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
                  int64_t head_dim, float eps, int dtype) {
  qk_norm_rope_cpu({pointer(qkv), pointer(q_weight), pointer(k_weight), pointer<float>(cos_sin),
                    num_tokens, num_heads, num_kv_heads, head_dim, eps, DType(dtype)},
                   pool);
}

void prefill_attention(ThreadPool& pool, Address q, Address k, Address v, Address segments,
                       Address visible_len, Address workspace, Address out, int64_t num_queries,
                       int64_t num_keys, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                       int64_t num_segments, int64_t q_stride, int64_t k_stride, int64_t v_stride,
                       float scale, int dtype) {
  prefill_attention_cpu({pointer(q), pointer(k), pointer(v), pointer<int32_t>(segments),
                         pointer<int32_t>(visible_len), pointer<float>(workspace), pointer(out),
                         num_queries, num_keys, num_heads, num_kv_heads, head_dim, num_segments,
                         q_stride, k_stride, v_stride, scale, DType(dtype)},
                        pool);
}

}  // namespace

void bind_dense_ops(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("linear", &linear, no_gil);
  m.def("rms_norm", &rms_norm, no_gil);
  m.def("silu_and_mul", &silu_and_mul, no_gil);
  m.def("qk_norm_rope", &qk_norm_rope, no_gil);
  m.def("prefill_attention", &prefill_attention, no_gil);
  m.def("prefill_workspace_size", &prefill_workspace_size);
}

}  // namespace pydstp
