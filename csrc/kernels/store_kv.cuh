// Grid: one block per token. A block copies the token's K and V into its row of the cache; -1 as
// sequence or slot skips it, other bad indices skip it and set the status.
#pragma once

#include "kernels/kv_arena.cuh"
#include "kernels/store_kv.h"

namespace pydstp {

template <typename T>
PYDSTP_KERNEL store_kv_kernel(StoreKvParams p) {
  const int64_t token = block_x(), seq = p.seq_idx[token], slot = p.slot_idx[token];
  if (seq == -1 || slot == -1) return;
  if (!is_index(seq, p.arena.max_batch)) return set_status(p.status, kBadSequence);
  T* row = find_row<T>(p.arena, seq, slot);
  if (!row) return set_status(p.status, kBadSlot);
  const T* k = static_cast<const T*>(p.k) + token * p.k_stride;
  const T* v = static_cast<const T*>(p.v) + token * p.v_stride;
  const int64_t half = row_size(p.arena) / 2;
  for (int64_t i = thread_idx(); i < half; i += num_threads()) {
    row[i] = k[i];
    row[half + i] = v[i];
  }
}

inline int launch_store_kv(const StoreKvParams& p, void* stream) {
  constexpr int kThreads = 128;
  const Grid grid{p.num_tokens};
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(store_kv_kernel<float>, grid, kThreads, 0, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(store_kv_kernel<BFloat16>, grid, kThreads, 0, stream, p);
  }
  return 0;
}

}  // namespace pydstp
