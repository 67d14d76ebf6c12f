// What several bindings describe the same way.
#pragma once

#include "bindings/module.h"
#include "kernels/decode_attention.h"

namespace pydstp {

// (visual, text, max_batch, visual_capacity, text_capacity, num_kv_heads, head_dim, dtype)
using ArenaTuple = std::tuple<Address, Address, int64_t, int64_t, int64_t, int64_t, int64_t, int>;

inline KvArena make_arena(const ArenaTuple& t) {
  const auto& [visual, text, max_batch, visual_capacity, text_capacity, heads, dim, dtype] = t;
  return {pointer(visual), pointer(text), max_batch, visual_capacity,
          text_capacity,   heads,         dim,       DType(dtype)};
}

// (probs, logits, base_mask, head_weights, layer_weights, norm, mass)
using MonitorTuple = std::tuple<Address, Address, Address, Address, Address, Address, Address>;

inline AttentionMonitor make_monitor(const MonitorTuple& t) {
  const auto& [probs, logits, base_mask, head_weights, layer_weights, norm, mass] = t;
  return {pointer<float>(probs),        pointer<float>(logits),        pointer<uint8_t>(base_mask),
          pointer<float>(head_weights), pointer<float>(layer_weights), pointer<int32_t>(norm),
          pointer<float>(mass)};
}

// (batch, num_heads, num_groups, list_capacity, num_layers, layer_idx, q_stride)
using SizeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// (q, arena, seq_idx, visible_indices, visible_len, layer_to_group, text_len, workspace, status,
// out, sizes, scale)
using AttentionTuple = std::tuple<Address, ArenaTuple, Address, Address, Address, Address, Address,
                                  Address, Address, Address, SizeTuple, float>;

inline DecodeAttentionParams make_attention(const AttentionTuple& t, const MonitorTuple& monitor) {
  const auto& [q, arena, seq_idx, indices, len, layer_to_group, text_len, workspace, status, out,
               sizes, scale] = t;
  const auto& [batch, num_heads, num_groups, list_capacity, num_layers, layer_idx, q_stride] =
      sizes;
  return {pointer(q),
          make_arena(arena),
          pointer<int32_t>(seq_idx),
          pointer<int32_t>(indices),
          pointer<int32_t>(len),
          pointer<int32_t>(layer_to_group),
          pointer<int32_t>(text_len),
          pointer<float>(workspace),
          pointer<int32_t>(status),
          pointer(out),
          batch,
          num_heads,
          num_groups,
          list_capacity,
          num_layers,
          layer_idx,
          q_stride,
          scale,
          make_monitor(monitor),
          {}};
}

}  // namespace pydstp
