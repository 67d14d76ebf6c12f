// Merges visual rows: one row of each sequence becomes the mean of some others.
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// The arena has no text part (text_capacity 0). Sums are fp32, in the order of the list.
struct MeanKvParams {
  KvArena arena;             // written
  const int32_t* seq_idx;    // [batch]; -1: skipped. No sequence twice
  const int32_t* indices;    // [max_batch, list_capacity]: visual slots; entries outside
                             // [0, visual_capacity) are skipped
  const int32_t* index_len;  // [max_batch]; 0: nothing is written
  const int32_t* dst_slot;   // [max_batch]: the visual slot to write; -1: none
  int32_t* status;           // [1] or nullptr
  int64_t batch, list_capacity;
};

void mean_kv_cpu(const MeanKvParams& p, ThreadPool& pool);
void mean_kv_simt(const MeanKvParams& p);
int mean_kv_cuda(const MeanKvParams& p, void* stream);

}  // namespace pydstp
