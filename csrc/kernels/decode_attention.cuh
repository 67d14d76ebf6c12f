// Two kernels. The first has one block per (chunk, KV head, row of the batch); it takes the softmax
// of its 64 entries alone for all query heads of that KV head and leaves, per head, the weighted
// sum of V, the maximum and the sum of p in the workspace. Grids cover the capacities; blocks
// beyond a row's length leave at once. The second has one block per (head, row) and merges chunks.
#pragma once

#include "kernels/decode_attention.h"
#include "kernels/kv_arena.cuh"

namespace pydstp {

constexpr int kAttentionThreads = 128;

// What one row of the batch reads.
struct AttentionRow {
  int64_t seq = -1, list_len = 0, text_len = 0;
  const int32_t* list = nullptr;
  int32_t status = 0;
};

PYDSTP_DEVICE int64_t bounded_len(int64_t len, int64_t capacity, int32_t* status) {
  const int64_t bounded = clamp_to(len, 0, capacity);
  if (bounded != len) *status |= kBadLength;
  return bounded;
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
    return result;
  }
  const int64_t list_idx = seq * p.num_groups + group;
  result.list = p.visible_indices + list_idx * p.list_capacity;
  result.list_len = bounded_len(p.visible_len[list_idx], p.list_capacity, &result.status);
  return result;
}

// Where the cache row of entry i of a chunk starts, or nullptr if there is none.
template <typename T>
PYDSTP_DEVICE const T* attention_entry(const DecodeAttentionParams& p, const AttentionRow& row,
                                       int64_t chunk, int64_t i) {
  const int64_t list_chunks = ceil_div(row.list_len, kAttentionChunk);
  if (chunk >= list_chunks) {
    const int64_t slot = (chunk - list_chunks) * kAttentionChunk + i;
    if (slot >= row.text_len) return nullptr;
    return find_row<T>(p.arena, row.seq, p.arena.visual_capacity + slot);
  }
  const int64_t entry = chunk * kAttentionChunk + i;
  if (entry >= row.list_len) return nullptr;
  const int64_t slot = row.list[entry];
  if (is_index(slot, p.arena.visual_capacity)) return find_row<T>(p.arena, row.seq, slot);
  set_status(p.status, kBadSlot);
  return nullptr;
}

PYDSTP_DEVICE float* attention_partial(const DecodeAttentionParams& p, int64_t row, int64_t chunk,
                                       int64_t head) {
  const int64_t entry = (row * max_attention_chunks(p) + chunk) * p.num_heads + head;
  return p.workspace + entry * (p.arena.head_dim + 2);
}

// scores[g][i] = scale * q[g] . k[i], a warp per entry; entries that are none get -inf.
template <typename T>
PYDSTP_DEVICE void score_entries(const DecodeAttentionParams& p, const T* q, int64_t group,
                                 int64_t kv_offset, const T* const* rows, float* scores) {
  for (int i = warp_idx(); i < kAttentionChunk; i += num_warps()) {
    for (int64_t g = 0; g < group; ++g) {
      float dot = 0.0f;
      for (int64_t d = lane_idx(); rows[i] && d < p.arena.head_dim; d += kWarpSize) {
        dot += to_float(q[g * p.arena.head_dim + d]) * to_float(rows[i][kv_offset + d]);
      }
      dot = warp_sum(dot);
      if (lane_idx() == 0) scores[g * kAttentionChunk + i] = rows[i] ? p.scale * dot : -INFINITY;
    }
  }
}

// One head's scores become p = exp(score - maximum), by one warp; *maximum and *sum are theirs.
PYDSTP_DEVICE void exponentiate_scores(float* scores, float* maximum, float* sum) {
  float peak = -INFINITY, total = 0.0f;
  for (int i = lane_idx(); i < kAttentionChunk; i += kWarpSize) peak = fmaxf(peak, scores[i]);
  peak = warp_max(peak);
  for (int i = lane_idx(); i < kAttentionChunk; i += kWarpSize) {
    scores[i] = scores[i] == -INFINITY ? 0.0f : expf(scores[i] - peak);
    total += scores[i];
  }
  total = warp_sum(total);
  if (lane_idx() == 0) {
    *maximum = peak;
    *sum = total;
  }
}

template <typename T>
PYDSTP_KERNEL attend_chunk_kernel(DecodeAttentionParams p) {
  PYDSTP_SHARED(const T*, rows);  // [kAttentionChunk], then scores [group, kAttentionChunk]
  float* scores = reinterpret_cast<float*>(rows + kAttentionChunk);
  const int64_t chunk = block_x(), kv = block_y(), batch_row = block_z();
  const AttentionRow row = attention_row(p, batch_row);
  if (thread_idx() == 0) set_status(p.status, row.status);
  const int64_t num_chunks =
      ceil_div(row.list_len, kAttentionChunk) + ceil_div(row.text_len, kAttentionChunk);
  if (chunk >= num_chunks) return;  // the whole block

  const int64_t head_dim = p.arena.head_dim, group = p.num_heads / p.arena.num_kv_heads;
  const T* q = static_cast<const T*>(p.q) + batch_row * p.q_stride + kv * group * head_dim;
  for (int i = thread_idx(); i < kAttentionChunk; i += num_threads()) {
    rows[i] = attention_entry<T>(p, row, chunk, i);
  }
  sync_threads();
  score_entries(p, q, group, kv * head_dim, rows, scores);
  sync_threads();
  for (int64_t g = warp_idx(); g < group; g += num_warps()) {
    float* tail = attention_partial(p, batch_row, chunk, kv * group + g) + head_dim;
    exponentiate_scores(scores + g * kAttentionChunk, tail, tail + 1);
  }
  sync_threads();
  const int64_t v_offset = (p.arena.num_kv_heads + kv) * head_dim;
  for (int64_t j = thread_idx(); j < group * head_dim; j += num_threads()) {
    const int64_t g = j / head_dim, d = j % head_dim;
    float total = 0.0f;
    for (int i = 0; i < kAttentionChunk; ++i) {
      if (rows[i]) total += scores[g * kAttentionChunk + i] * to_float(rows[i][v_offset + d]);
    }
    attention_partial(p, batch_row, chunk, kv * group + g)[d] = total;
  }
}

template <typename T>
PYDSTP_KERNEL merge_chunks_kernel(DecodeAttentionParams p) {
  const int64_t head = block_x(), batch_row = block_y(), head_dim = p.arena.head_dim;
  const AttentionRow row = attention_row(p, batch_row);
  const int64_t num_chunks =
      ceil_div(row.list_len, kAttentionChunk) + ceil_div(row.text_len, kAttentionChunk);
  float maximum = -INFINITY;
  for (int64_t c = 0; c < num_chunks; ++c) {
    maximum = fmaxf(maximum, attention_partial(p, batch_row, c, head)[head_dim]);
  }
  T* out = static_cast<T*>(p.out) + (batch_row * p.num_heads + head) * head_dim;
  for (int64_t d = thread_idx(); d < head_dim; d += num_threads()) {
    float total = 0.0f, sum = 0.0f;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const float* partial = attention_partial(p, batch_row, c, head);
      const float peak = partial[head_dim];
      const float weight = peak == -INFINITY ? 0.0f : expf(peak - maximum);
      sum += weight * partial[head_dim + 1];
      total += weight * partial[d];
    }
    assign(out[d], sum == 0.0f ? 0.0f : total / sum);
  }
}

template <typename T>
int launch_attention(const DecodeAttentionParams& p, void* stream) {
  const int64_t group = p.num_heads / p.arena.num_kv_heads;
  const int64_t shared_bytes = kAttentionChunk * (sizeof(T*) + group * sizeof(float));
  const Grid chunks{max_attention_chunks(p), p.arena.num_kv_heads, p.batch};
  const Grid heads{p.num_heads, p.batch};
  const int status =
      PYDSTP_LAUNCH(attend_chunk_kernel<T>, chunks, kAttentionThreads, shared_bytes, stream, p);
  if (status != 0) return status;
  return PYDSTP_LAUNCH(merge_chunks_kernel<T>, heads, kAttentionThreads, 0, stream, p);
}

inline int launch_decode_attention(const DecodeAttentionParams& p, void* stream) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return launch_attention<float>(p, stream);
    case DType::kBFloat16:
      return launch_attention<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
