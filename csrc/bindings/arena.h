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

// (probs, logits, base_mask, head_weights, layer_weights, norm)
using MonitorTuple = std::tuple<Address, Address, Address, Address, Address, Address>;

inline AttentionMonitor make_monitor(const MonitorTuple& t) {
  const auto& [probs, logits, base_mask, head_weights, layer_weights, norm] = t;
  return {pointer<float>(probs),        pointer<float>(logits),        pointer<uint8_t>(base_mask),
          pointer<float>(head_weights), pointer<float>(layer_weights), pointer<int32_t>(norm)};
}

}  // namespace pydstp
