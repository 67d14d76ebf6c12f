// Ops of same-step return: addresses in, params out.
#include "bindings/arena.h"
#include "bindings/bind_op.h"
#include "kernels/attention_return.h"
#include "kernels/key_sketch.h"

namespace pydstp {
namespace {

// (codes, scales, channel_scale, bits)
using SketchTuple = std::tuple<Address, Address, Address, int>;

KeySketch make_sketch(const SketchTuple& t) {
  const auto& [codes, scales, channel_scale, bits] = t;
  return {pointer<uint8_t>(codes), pointer<float>(scales), pointer<float>(channel_scale), bits};
}

// (reserve_indices, reserve_len, max_returned, per_head, mass, reserve_capacity, reserve_group)
using ReserveTuple = std::tuple<Address, Address, Address, Address, Address, int64_t, int64_t>;

// (returned_indices, returned_len, return_capacity)
using ReturnedTuple = std::tuple<Address, Address, int64_t>;

SketchScaleParams make_sketch_scale(const ArenaTuple& arena, const SketchTuple& sketch,
                                    Address slots, Address status, int64_t seq_idx,
                                    int64_t num_slots, int statistic) {
  return {make_arena(arena),
          make_sketch(sketch),
          pointer<int32_t>(slots),
          pointer<int32_t>(status),
          seq_idx,
          num_slots,
          statistic};
}

SketchKeysParams make_sketch_keys(const ArenaTuple& arena, const SketchTuple& sketch, Address slots,
                                  Address status, int64_t seq_idx, int64_t num_slots,
                                  int64_t first_entry) {
  return {make_arena(arena),
          make_sketch(sketch),
          pointer<int32_t>(slots),
          pointer<int32_t>(status),
          seq_idx,
          num_slots,
          first_entry};
}

ReturnedRows make_returned(const ReturnedTuple& t) {
  const auto& [indices, len, capacity] = t;
  return {pointer<int32_t>(indices), pointer<int32_t>(len), capacity};
}

AttentionReturnParams make_return(const AttentionTuple& listed, const MonitorTuple& monitor,
                                  const SketchTuple& sketch, const ReserveTuple& reserve,
                                  const ReturnedTuple& returned, Address workspace) {
  DecodeAttentionParams attention = make_attention(listed, monitor);
  attention.returned = make_returned(returned);
  const auto& [indices, len, max_returned, per_head, mass, capacity, group] = reserve;
  const KeySketch s = make_sketch(sketch);
  const int64_t row_bytes = return_row_bytes(attention.num_heads, attention.arena.num_kv_heads,
                                             attention.arena.head_dim, s.bits, capacity);
  return {attention,
          s,
          pointer<int32_t>(indices),
          pointer<int32_t>(len),
          pointer<int32_t>(max_returned),
          pointer<int32_t>(per_head),
          pointer<float>(mass),
          pointer(workspace),
          row_bytes,
          capacity,
          group};
}

}  // namespace

void bind_return_ops(py::module_& m) {
  m.def("return_row_bytes", &return_row_bytes);
  PYDSTP_BIND(m, sketch_scale, &make_sketch_scale);
  PYDSTP_BIND(m, sketch_keys, &make_sketch_keys);
  PYDSTP_BIND(m, attention_return, &make_return);
}

}  // namespace pydstp
