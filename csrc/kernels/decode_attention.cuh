// Two kernels. The first has one block per (chunk, KV head, row of the batch); it takes the softmax
// of its 64 entries alone for all query heads of that KV head and leaves, per head, the weighted
// sum of V, the maximum and the sum of p in the workspace. Grids cover the capacities; blocks
// beyond a row's length leave at once. The second has one block per (head, row) and merges chunks.
//
// With a monitor, the first also keeps the scores of list entries, the second turns each head's
// into weighted probabilities, and a third one, a thread per list entry, adds them up over heads.
//
// attention_return launches the first again for its returned rows, before the second.
#pragma once

#include "kernels/attention_monitor.cuh"
#include "kernels/attention_row.cuh"
#include "kernels/decode_attention.h"

namespace pydstp {

constexpr int kAttentionThreads = 128;

// The cache row of entry i of a chunk of what a KV head got back.
template <typename T>
PYDSTP_DEVICE const T* returned_entry(const DecodeAttentionParams& p, const AttentionRow& row,
                                      int64_t chunk, int64_t i) {
  const int64_t list = block_z() * p.arena.num_kv_heads + block_y();
  const int64_t entry = (chunk - listed_chunks(row)) * kAttentionChunk + i;
  if (entry >= p.returned.len[list]) return nullptr;
  return find_row<T>(p.arena, row.seq, p.returned.indices[list * p.returned.capacity + entry]);
}

// Where the cache row of entry i of a chunk starts, or nullptr if there is none.
template <typename T>
PYDSTP_DEVICE const T* attention_entry(const DecodeAttentionParams& p, const AttentionRow& row,
                                       int64_t chunk, int64_t i) {
  if (p.returned.len) return returned_entry<T>(p, row, chunk, i);
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
  const int64_t kv = block_y(), batch_row = block_z();
  const AttentionRow row = attention_row(p, batch_row);
  if (thread_idx() == 0) set_status(p.status, row.status);
  const int64_t chunk = block_x() + (p.returned.len ? listed_chunks(row) : 0);
  if (chunk >= all_chunks(p, row, batch_row)) return;  // the whole block

  const int64_t head_dim = p.arena.head_dim, group = p.num_heads / p.arena.num_kv_heads;
  const T* q = static_cast<const T*>(p.q) + batch_row * p.q_stride + kv * group * head_dim;
  for (int i = thread_idx(); i < kAttentionChunk; i += num_threads()) {
    rows[i] = attention_entry<T>(p, row, chunk, i);
  }
  sync_threads();
  score_entries(p, q, group, kv * head_dim, rows, scores);
  sync_threads();
  keep_scores(p, row, batch_row, chunk, kv, scores);
  for (int64_t g = warp_idx(); g < group; g += num_warps()) {
    float* tail = attention_partial(p, batch_row, chunk, kv * group + g) + head_dim;
    exponentiate_scores(scores + g * kAttentionChunk, tail, tail + 1);
  }
  if (!p.out) return;  // the whole block
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
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const int64_t head = block_x(), batch_row = block_y(), head_dim = p.arena.head_dim;
  const AttentionRow row = attention_row(p, batch_row);
  const int64_t num_chunks = all_chunks(p, row, batch_row);
  weigh_head(p, row, batch_row, head, num_chunks, scratch);
  if (!p.out) return;  // the whole block
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

// The chunks of list and text; with p.returned.len, those of what was returned.
template <typename T>
int launch_chunks(const DecodeAttentionParams& p, void* stream) {
  const int64_t group = p.num_heads / p.arena.num_kv_heads;
  const int64_t shared_bytes = kAttentionChunk * (sizeof(T*) + group * sizeof(float));
  const Grid chunks{max_attention_chunks(p), p.arena.num_kv_heads, p.batch};
  return PYDSTP_LAUNCH(attend_chunk_kernel<T>, chunks, kAttentionThreads, shared_bytes, stream, p);
}

template <typename T>
int launch_merge(const DecodeAttentionParams& p, void* stream) {
  const Grid heads{p.num_heads, p.batch};
  constexpr int64_t kScratchBytes = kAttentionThreads / kWarpSize * sizeof(float);
  const int merged =
      PYDSTP_LAUNCH(merge_chunks_kernel<T>, heads, kAttentionThreads, kScratchBytes, stream, p);
  return merged != 0 ? merged : launch_add_probs(p, stream);
}

template <typename T>
int launch_attention(const DecodeAttentionParams& p, void* stream) {
  const int status = launch_chunks<T>(p, stream);
  return status != 0 ? status : launch_merge<T>(p, stream);
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
