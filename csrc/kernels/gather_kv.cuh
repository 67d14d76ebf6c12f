// Grid: one block per slot of the list. A block copies that row of the cache out, or writes zeros.
#pragma once

#include "kernels/gather_kv.h"
#include "kernels/kv_arena.cuh"

namespace pydstp {

template <typename T>
PYDSTP_KERNEL gather_kv_kernel(GatherKvParams p) {
  const int64_t slot = p.slots[block_x()], size = row_size(p.arena);
  const T* row = find_row<T>(p.arena, p.seq_idx, slot);
  T* out = static_cast<T*>(p.out) + block_x() * size;
  if (!row && slot != -1) set_status(p.status, kBadSlot);
  for (int64_t i = thread_idx(); i < size; i += num_threads()) {
    if (row) {
      out[i] = row[i];
    } else {
      assign(out[i], 0.0f);
    }
  }
}

inline int launch_gather_kv(const GatherKvParams& p, void* stream) {
  constexpr int kThreads = 128;
  const Grid grid{p.num_slots};
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(gather_kv_kernel<float>, grid, kThreads, 0, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(gather_kv_kernel<BFloat16>, grid, kThreads, 0, stream, p);
  }
  return 0;
}

}  // namespace pydstp
