// What the blocks of decode attention share: the row they work on, and their places in memory.
#pragma once

#include "kernels/decode_attention.h"
#include "kernels/kv_arena.cuh"

namespace pydstp {

// What one row of the batch reads.
struct AttentionRow {
  int64_t seq = -1, list_len = 0, text_len = 0;
  const int32_t* list = nullptr;
  int32_t status = 0;
  float weight = 0.0f;  // of its probabilities; 0: they are not wanted
};

PYDSTP_DEVICE int64_t bounded_len(int64_t len, int64_t capacity, int32_t* status) {
  const int64_t bounded = clamp_to(len, 0, capacity);
  if (bounded != len) *status |= kBadLength;
  return bounded;
}

// Without an output, text matters for the normaliser only, and rows without weight do not at all.
PYDSTP_DEVICE AttentionRow without_output(const DecodeAttentionParams& p, AttentionRow row) {
  if (row.weight == 0.0f) row.list_len = 0;
  if (row.weight == 0.0f || p.monitor.norm[row.seq] == 0) row.text_len = 0;
  return row;
}

PYDSTP_DEVICE AttentionRow attention_row(const DecodeAttentionParams& p, int64_t row) {
  AttentionRow result;
  const int64_t seq = p.seq_idx[row];
  if (!is_index(seq, p.arena.max_batch)) {
    result.status = seq == -1 ? 0 : kBadSequence;
    return result;
  }
  result.seq = seq;
  result.text_len = bounded_len(p.text_len[seq], p.arena.text_capacity, &result.status);
  const int64_t group = p.layer_to_group[seq * p.num_layers + p.layer_idx];
  if (!is_index(group, p.num_groups)) {
    result.status |= kBadLayer;
    return p.out ? result : without_output(p, result);
  }
  const int64_t list_idx = seq * p.num_groups + group;
  result.list = p.visible_indices + list_idx * p.list_capacity;
  result.list_len = bounded_len(p.visible_len[list_idx], p.list_capacity, &result.status);
  if (p.monitor.probs) result.weight = p.monitor.layer_weights[seq * p.num_layers + p.layer_idx];
  return p.out ? result : without_output(p, result);
}

// Chunks of list and text.
PYDSTP_DEVICE int64_t listed_chunks(const AttentionRow& row) {
  return ceil_div(row.list_len, kAttentionChunk) + ceil_div(row.text_len, kAttentionChunk);
}

// The same and those of what was returned, as many for every KV head.
PYDSTP_DEVICE int64_t all_chunks(const DecodeAttentionParams& p, const AttentionRow& row,
                                 int64_t batch_row) {
  int64_t longest = 0;
  for (int64_t kv = 0; p.returned.len && kv < p.arena.num_kv_heads; ++kv) {
    longest = max_of(longest, p.returned.len[batch_row * p.arena.num_kv_heads + kv]);
  }
  return listed_chunks(row) + ceil_div(longest, kAttentionChunk);
}

PYDSTP_DEVICE float* attention_partial(const DecodeAttentionParams& p, int64_t row, int64_t chunk,
                                       int64_t head) {
  const int64_t entry = (row * max_attention_chunks(p) + chunk) * p.num_heads + head;
  return p.workspace + entry * (p.arena.head_dim + 2);
}

}  // namespace pydstp
