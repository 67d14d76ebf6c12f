// The parts of decode attention that gather how much of it each visual row gets.
#pragma once

#include "kernels/attention_row.cuh"
#include "kernels/block_sum.cuh"

namespace pydstp {

PYDSTP_DEVICE float* monitor_logits(const DecodeAttentionParams& p, int64_t row, int64_t head) {
  return p.monitor.logits + (row * p.num_heads + head) * p.list_capacity;
}

// Whether a visual slot of the row takes part.
PYDSTP_DEVICE bool is_counted(const DecodeAttentionParams& p, const AttentionRow& row,
                              int64_t slot) {
  if (!is_index(slot, p.arena.visual_capacity)) return false;
  const uint8_t* mask = p.monitor.base_mask;
  return !mask || mask[row.seq * p.arena.visual_capacity + slot] != 0;
}

// A block leaves the scores [group, kAttentionChunk] of a chunk of the list, -inf for entries that
// do not count.
PYDSTP_DEVICE void keep_scores(const DecodeAttentionParams& p, const AttentionRow& row,
                               int64_t batch_row, int64_t chunk, int64_t kv, const float* scores) {
  const int64_t group = p.num_heads / p.arena.num_kv_heads;
  const int64_t first = chunk * kAttentionChunk;
  if (row.weight == 0.0f || first >= row.list_len) return;  // the whole block
  const int64_t size = min_of(kAttentionChunk, row.list_len - first);
  for (int64_t j = thread_idx(); j < group * kAttentionChunk; j += num_threads()) {
    const int64_t g = j / kAttentionChunk, i = j % kAttentionChunk;
    if (i >= size) continue;
    const bool counts = is_counted(p, row, row.list[first + i]);
    monitor_logits(p, batch_row, kv * group + g)[first + i] = counts ? scores[j] : -INFINITY;
  }
  sync_threads();  // the scores are overwritten next
}

// The maximum and the sum of p over all that one head attends to.
PYDSTP_DEVICE void context_normaliser(const DecodeAttentionParams& p, int64_t batch_row,
                                      int64_t head, int64_t num_chunks, float* maximum,
                                      float* sum) {
  *maximum = -INFINITY;
  *sum = 0.0f;
  for (int64_t c = 0; c < num_chunks; ++c) {
    const float* tail = attention_partial(p, batch_row, c, head) + p.arena.head_dim;
    *maximum = fmaxf(*maximum, tail[0]);
  }
  for (int64_t c = 0; c < num_chunks; ++c) {
    const float* tail = attention_partial(p, batch_row, c, head) + p.arena.head_dim;
    if (tail[0] != -INFINITY) *sum += expf(tail[0] - *maximum) * tail[1];
  }
}

// A block turns one head's kept scores into weighted probabilities. scratch: [num_warps].
PYDSTP_DEVICE void weigh_head(const DecodeAttentionParams& p, const AttentionRow& row,
                              int64_t batch_row, int64_t head, int64_t num_chunks, float* scratch) {
  if (row.weight == 0.0f) return;  // the whole block, as in the next line
  const float weight = p.monitor.head_weights[row.seq * p.num_heads + head];
  if (weight == 0.0f) return;
  float* logits = monitor_logits(p, batch_row, head);
  float maximum = -INFINITY, sum = 0.0f, own_sum = 0.0f;
  if (p.monitor.norm[row.seq] == 0) {
    for (int64_t i = thread_idx(); i < row.list_len; i += num_threads()) {
      maximum = fmaxf(maximum, logits[i]);
    }
    maximum = block_max(maximum, scratch);
  } else {
    context_normaliser(p, batch_row, head, num_chunks, &maximum, &sum);
  }
  for (int64_t i = thread_idx(); i < row.list_len; i += num_threads()) {
    logits[i] = logits[i] == -INFINITY ? 0.0f : expf(logits[i] - maximum);
    own_sum += logits[i];
  }
  own_sum = block_sum(own_sum, scratch);
  if (p.monitor.norm[row.seq] == 0) sum = own_sum;
  if (p.monitor.mass && thread_idx() == 0) {
    p.monitor.mass[row.seq * p.num_heads + head] = sum == 0.0f ? 0.0f : own_sum / sum;
  }
  for (int64_t i = thread_idx(); i < row.list_len; i += num_threads()) {
    logits[i] = sum == 0.0f ? 0.0f : logits[i] * (weight / sum);
  }
}

PYDSTP_KERNEL add_probs_kernel(DecodeAttentionParams p) {
  const int64_t batch_row = block_y(), entry = block_x() * num_threads() + thread_idx();
  const AttentionRow row = attention_row(p, batch_row);
  if (row.weight == 0.0f || entry >= row.list_len) return;
  const int64_t slot = row.list[entry];
  if (!is_counted(p, row, slot)) return;
  float total = 0.0f;
  for (int64_t head = 0; head < p.num_heads; ++head) {
    const float weight = p.monitor.head_weights[row.seq * p.num_heads + head];
    if (weight != 0.0f) total += monitor_logits(p, batch_row, head)[entry];
  }
  p.monitor.probs[row.seq * p.arena.visual_capacity + slot] += row.weight * total;
}

inline int launch_add_probs(const DecodeAttentionParams& p, void* stream) {
  constexpr int kThreads = 128;
  if (!p.monitor.probs) return 0;
  const Grid grid{ceil_div(p.list_capacity, kThreads), p.batch};
  return PYDSTP_LAUNCH(add_probs_kernel, grid, kThreads, 0, stream, p);
}

}  // namespace pydstp
