// Copies rows of one sequence out of the cache, in the order of a slot list.
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

struct GatherKvParams {
  KvArena arena;               // read
  const int32_t* slots;        // [num_slots]; a slot that names no row gives zeros
  void* out;                   // [num_slots, 2, num_kv_heads, head_dim], contiguous
  int32_t* status;             // [1] or nullptr
  int64_t seq_idx, num_slots;  // 0 <= seq_idx < max_batch
};

void gather_kv_cpu(const GatherKvParams& p, ThreadPool& pool);
void gather_kv_simt(const GatherKvParams& p);
int gather_kv_cuda(const GatherKvParams& p, void* stream);

}  // namespace pydstp
