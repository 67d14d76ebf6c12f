// Grid: (blocks of columns, rows of the batch). A thread averages one column of K or V.
#pragma once

#include "kernels/kv_arena.cuh"
#include "kernels/mean_kv.h"

namespace pydstp {

// Whether the sequence has a row to write; bits for the status word if something is wrong.
PYDSTP_DEVICE bool has_mean(const MeanKvParams& p, int64_t seq, int32_t* status) {
  *status = 0;
  if (!is_index(seq, p.arena.max_batch)) {
    if (seq != -1) *status = kBadSequence;
    return false;
  }
  const int64_t len = p.index_len[seq], slot = p.dst_slot[seq];
  if (len < 0 || len > p.list_capacity) *status = kBadLength;
  if (len <= 0 || slot == -1) return false;
  if (is_index(slot, p.arena.visual_capacity)) return true;
  *status |= kBadSlot;
  return false;
}

template <typename T>
PYDSTP_KERNEL mean_kv_kernel(MeanKvParams p) {
  const int64_t column = block_x() * num_threads() + thread_idx(), seq = p.seq_idx[block_y()];
  int32_t status;
  const bool is_written = has_mean(p, seq, &status);
  if (thread_idx() == 0) set_status(p.status, status);
  if (!is_written || column >= row_size(p.arena)) return;
  const int64_t len = min_of(p.index_len[seq], p.list_capacity);
  float total = 0.0f, count = 0.0f;
  for (int64_t i = 0; i < len; ++i) {
    const int64_t slot = p.indices[seq * p.list_capacity + i];
    if (is_index(slot, p.arena.visual_capacity)) {
      total += to_float(find_row<T>(p.arena, seq, slot)[column]);
      count += 1.0f;
    } else {
      set_status(p.status, kBadSlot);
    }
  }
  if (count > 0.0f) assign(find_row<T>(p.arena, seq, p.dst_slot[seq])[column], total / count);
}

inline int launch_mean_kv(const MeanKvParams& p, void* stream) {
  constexpr int kThreads = 128;
  const int64_t columns = 2 * p.arena.num_kv_heads * p.arena.head_dim;
  const Grid grid{ceil_div(columns, kThreads), p.batch};
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return PYDSTP_LAUNCH(mean_kv_kernel<float>, grid, kThreads, 0, stream, p);
    case DType::kBFloat16:
      return PYDSTP_LAUNCH(mean_kv_kernel<BFloat16>, grid, kThreads, 0, stream, p);
  }
  return 0;
}

}  // namespace pydstp
