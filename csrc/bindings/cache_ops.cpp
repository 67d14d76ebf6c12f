// Ops on the KV cache: addresses in, params out.
#include "bindings/arena.h"
#include "bindings/bind_op.h"
#include "kernels/gather_kv.h"
#include "kernels/mean_kv.h"
#include "kernels/store_kv.h"

namespace pydstp {
namespace {

StoreKvParams make_store_kv(Address k, Address v, const ArenaTuple& arena, Address seq_idx,
                            Address slot_idx, Address status, int64_t num_tokens, int64_t k_stride,
                            int64_t v_stride) {
  return {pointer(k),
          pointer(v),
          make_arena(arena),
          pointer<int32_t>(seq_idx),
          pointer<int32_t>(slot_idx),
          pointer<int32_t>(status),
          num_tokens,
          k_stride,
          v_stride};
}

GatherKvParams make_gather_kv(const ArenaTuple& arena, Address slots, Address out, Address status,
                              int64_t seq_idx, int64_t num_slots) {
  return {make_arena(arena), pointer<int32_t>(slots),
          pointer(out),      pointer<int32_t>(status),
          seq_idx,           num_slots};
}

MeanKvParams make_mean_kv(const ArenaTuple& arena, Address seq_idx, Address indices,
                          Address index_len, Address dst_slot, Address status, int64_t batch,
                          int64_t list_capacity) {
  return {make_arena(arena),
          pointer<int32_t>(seq_idx),
          pointer<int32_t>(indices),
          pointer<int32_t>(index_len),
          pointer<int32_t>(dst_slot),
          pointer<int32_t>(status),
          batch,
          list_capacity};
}

}  // namespace

void bind_cache_ops(py::module_& m) {
  PYDSTP_BIND(m, store_kv, &make_store_kv);
  PYDSTP_BIND(m, gather_kv, &make_gather_kv);
  PYDSTP_BIND(m, mean_kv, &make_mean_kv);
  PYDSTP_BIND(m, decode_attention, &make_attention);
}

}  // namespace pydstp
