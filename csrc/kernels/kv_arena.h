// The two arenas of one layer's KV cache, as every op that touches the cache sees them.
#pragma once

#include "common/dtype.h"

namespace pydstp {

// Slot numbers: [0, visual_capacity) lies in the visual arena, the next text_capacity numbers in
// the text arena; anything else names no row. One row is K of all heads, then V of all heads.
struct KvArena {
  void* visual;  // [max_batch, visual_capacity, 2, num_kv_heads, head_dim], contiguous
  void* text;    // [max_batch, text_capacity, 2, num_kv_heads, head_dim], contiguous
  int64_t max_batch, visual_capacity, text_capacity;
  int64_t num_kv_heads, head_dim;
  DType dtype;
};

// Bits of the status word that ops set, never clear, when they skip what they cannot obey.
enum StatusBit : int32_t {
  kBadSequence = 1,  // seq_idx outside [0, max_batch), and not -1
  kBadSlot = 2,      // slot outside both arenas, and not -1
  kBadLayer = 4,     // layer_to_group names no group
  kBadLength = 8,    // a length is negative or above its capacity
};

}  // namespace pydstp
