// One query token per row against what its sequence shows: a list of visual rows, then all text.
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// List and text are cut, separately, into chunks of this many entries. A chunk's softmax is
// computed alone and chunks are merged in order: that fixes every result bit for bit.
constexpr int64_t kAttentionChunk = 64;

// Gathers how much attention visual rows got. A row b of the batch with sequence s and weight w =
// layer_weights[s, layer_idx] != 0 adds, for every list entry with slot t that counts,
//   probs[s, t] += w * sum over heads h of head_weights[s, h] * exp(score[h, t] - m[h]) / z[h],
// heads in ascending order; heads of weight 0 are not looked at. m and z are those of the entries
// that count (subset), or of all that the row attends to (context). mass[s, h] becomes the sum of
// the same quotients over the entries that count, without weights. Nothing is read for it but
// scores that attention computes anyway. No sequence and no slot of a list may come twice.
struct AttentionMonitor {
  float* probs;                // [max_batch, visual_capacity], added to; nullptr: no monitoring
  float* logits;               // workspace [batch, num_heads, list_capacity]
  const uint8_t* base_mask;    // [max_batch, visual_capacity] nonzero: counts; or nullptr: all do
  const float* head_weights;   // [max_batch, num_heads]
  const float* layer_weights;  // [max_batch, num_layers]; 0: the row's probs stay as they are
  const int32_t* norm;         // [max_batch] 0: subset, else context
  float* mass;                 // [max_batch, num_heads] or nullptr; heads of weight 0 stay
};

// Visual rows that a KV head of a row of the batch attends to beside list and text. Their chunks
// are merged last. They count for the normaliser of a monitor's context, and get no probabilities.
struct ReturnedRows {
  int32_t* indices;  // [batch, num_kv_heads, capacity] visual slots, each within range
  int32_t* len;      // [batch, num_kv_heads]; nullptr: there are none
  int64_t capacity;
};

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
                                   // ceil(list_capacity / 64) + ceil(text_capacity / 64) +
                                   // ceil(returned.capacity / 64)
  int32_t* status;                 // [1] or nullptr
  void* out;                       // [batch, num_heads, head_dim], contiguous; or nullptr: V is not
                                   // read, and only what the monitor needs is computed
  int64_t batch, num_heads, num_groups, list_capacity, num_layers, layer_idx;
  int64_t q_stride;  // between rows of q, in elements
  float scale;
  AttentionMonitor monitor;
  ReturnedRows returned;  // read and written by attention_return alone; elsewhere there are none
};

// num_heads is a multiple of num_kv_heads; query head h reads KV head h / (heads per KV head).
// A row's result does not depend on the batch, its neighbours or the number of threads.
void decode_attention_cpu(const DecodeAttentionParams& p, ThreadPool& pool);
void decode_attention_simt(const DecodeAttentionParams& p);
int decode_attention_cuda(const DecodeAttentionParams& p, void* stream);

static inline PYDSTP_HOST_DEVICE int64_t max_attention_chunks(const DecodeAttentionParams& p) {
  return (p.list_capacity + kAttentionChunk - 1) / kAttentionChunk +
         (p.arena.text_capacity + kAttentionChunk - 1) / kAttentionChunk +
         (p.returned.capacity + kAttentionChunk - 1) / kAttentionChunk;
}

}  // namespace pydstp
