// Ops on the KV cache: addresses in, params out.
#include "bindings/arena.h"
#include "common/thread_pool.h"
#include "kernels/gather_kv.h"
#include "kernels/mean_kv.h"
#include "kernels/store_kv.h"

namespace pydstp {
namespace {

void store_kv(ThreadPool& pool, Address k, Address v, const ArenaTuple& arena, Address seq_idx,
              Address slot_idx, Address status, int64_t num_tokens, int64_t k_stride,
              int64_t v_stride) {
  store_kv_cpu(
      {pointer(k), pointer(v), make_arena(arena), pointer<int32_t>(seq_idx),
       pointer<int32_t>(slot_idx), pointer<int32_t>(status), num_tokens, k_stride, v_stride},
      pool);
}

void gather_kv(ThreadPool& pool, const ArenaTuple& arena, Address slots, Address out,
               Address status, int64_t seq_idx, int64_t num_slots) {
  gather_kv_cpu({make_arena(arena), pointer<int32_t>(slots), pointer(out), pointer<int32_t>(status),
                 seq_idx, num_slots},
                pool);
}

void mean_kv(ThreadPool& pool, const ArenaTuple& arena, Address seq_idx, Address indices,
             Address index_len, Address dst_slot, Address status, int64_t batch,
             int64_t list_capacity) {
  mean_kv_cpu({make_arena(arena), pointer<int32_t>(seq_idx), pointer<int32_t>(indices),
               pointer<int32_t>(index_len), pointer<int32_t>(dst_slot), pointer<int32_t>(status),
               batch, list_capacity},
              pool);
}

void decode_attention(ThreadPool& pool, const AttentionTuple& attention,
                      const MonitorTuple& monitor) {
  decode_attention_cpu(make_attention(attention, monitor), pool);
}

}  // namespace

void bind_cache_ops(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("store_kv", &store_kv, no_gil);
  m.def("gather_kv", &gather_kv, no_gil);
  m.def("mean_kv", &mean_kv, no_gil);
  m.def("decode_attention", &decode_attention, no_gil);
}

}  // namespace pydstp
