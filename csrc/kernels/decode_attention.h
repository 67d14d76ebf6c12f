// One query token per row against what its sequence shows: a list of visual rows, then all text.
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// List and text are cut, separately, into chunks of this many entries. A chunk's softmax is
// computed alone and chunks are merged in order: that fixes every result bit for bit.
constexpr int64_t kAttentionChunk = 64;

struct DecodeAttentionParams {
  const void* q;                   // [batch, num_heads, head_dim]; a row is contiguous
  KvArena arena;                   // read
  const int32_t* seq_idx;          // [batch]; -1: the row is skipped, its output is zero
  const int32_t* visible_indices;  // [max_batch, num_groups, list_capacity]: visual slots; entries
                                   // outside [0, visual_capacity) are skipped
  const int32_t* visible_len;      // [max_batch, num_groups]
  const int32_t* layer_to_group;   // [max_batch, num_layers]
  const int32_t* text_len;         // [max_batch]
  float* workspace;                // [batch, max_chunks, num_heads, head_dim + 2], max_chunks =
                                   // ceil(list_capacity / 64) + ceil(text_capacity / 64)
  int32_t* status;                 // [1] or nullptr
  void* out;                       // [batch, num_heads, head_dim], contiguous
  int64_t batch, num_heads, num_groups, list_capacity, num_layers, layer_idx;
  int64_t q_stride;  // between rows of q, in elements
  float scale;
};

// num_heads is a multiple of num_kv_heads; query head h reads KV head h / (heads per KV head).
// A row's result does not depend on the batch, its neighbours or the number of threads.
void decode_attention_cpu(const DecodeAttentionParams& p, ThreadPool& pool);
void decode_attention_simt(const DecodeAttentionParams& p);

static inline PYDSTP_HOST_DEVICE int64_t max_attention_chunks(const DecodeAttentionParams& p) {
  return (p.list_capacity + kAttentionChunk - 1) / kAttentionChunk +
         (p.arena.text_capacity + kAttentionChunk - 1) / kAttentionChunk;
}

}  // namespace pydstp
