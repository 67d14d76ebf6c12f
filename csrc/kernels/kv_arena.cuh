// Finding rows of the cache on the device.
#pragma once

#include "common/math.h"
#include "kernels/kv_arena.h"
#include "simt/simt.h"

namespace pydstp {

// Elements of one row: K and V of all heads.
PYDSTP_DEVICE int64_t row_size(const KvArena& arena) {
  return 2 * arena.num_kv_heads * arena.head_dim;
}

// The row of a slot, or nullptr when the slot names none. seq is within [0, max_batch).
template <typename T>
PYDSTP_DEVICE T* find_row(const KvArena& arena, int64_t seq, int64_t slot) {
  if (is_index(slot, arena.visual_capacity)) {
    return static_cast<T*>(arena.visual) + (seq * arena.visual_capacity + slot) * row_size(arena);
  }
  const int64_t text_slot = slot - arena.visual_capacity;
  if (!is_index(text_slot, arena.text_capacity)) return nullptr;
  return static_cast<T*>(arena.text) + (seq * arena.text_capacity + text_slot) * row_size(arena);
}

PYDSTP_DEVICE void set_status(int32_t* status, int32_t bits) {
  if (status && bits) atomic_or(status, bits);
}

}  // namespace pydstp
