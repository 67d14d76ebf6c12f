// Writes the new tokens' K and V into their slots of the cache.
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

struct StoreKvParams {
  const void* k;            // [num_tokens, num_kv_heads, head_dim]; a token is contiguous
  const void* v;            // [num_tokens, num_kv_heads, head_dim]; a token is contiguous
  KvArena arena;            // written
  const int32_t* seq_idx;   // [num_tokens]; -1: the token is skipped
  const int32_t* slot_idx;  // [num_tokens]; -1: the token is skipped. No (sequence, slot) twice
  int32_t* status;          // [1] or nullptr
  int64_t num_tokens;
  int64_t k_stride, v_stride;  // between tokens, in elements
};

void store_kv_cpu(const StoreKvParams& p, ThreadPool& pool);
void store_kv_simt(const StoreKvParams& p);
int store_kv_cuda(const StoreKvParams& p, void* stream);

}  // namespace pydstp
