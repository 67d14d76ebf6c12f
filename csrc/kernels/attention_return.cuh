// The kernels of decode_attention, and three between its two: one block per (head, row) folds q,
// one per (chunk, KV head, row) scores a chunk of the reserve, one per (KV head, row) selects. Then
// returned rows become further chunks. Blocks of rows without a reserve leave at once.
#pragma once

#include "kernels/decode_attention.cuh"
#include "kernels/return_select.cuh"

namespace pydstp {

// A block writes a head's q8, with zeros behind it; returns the thread's part of its sum.
template <typename T>
PYDSTP_DEVICE float write_q8(const AttentionReturnParams& p, const T* q, const float* channel_scale,
                             float inverse, int8_t* q8) {
  const int64_t head_dim = p.attention.arena.head_dim;
  float sum = 0.0f;  // exact: small whole numbers
  for (int64_t d = thread_idx(); d < q8_size(p.sketch.bits, head_dim); d += num_threads()) {
    const float scale = d < head_dim ? channel_scale[d % (head_dim / 2)] : 0.0f;
    const float value = d < head_dim ? to_float(q[d]) * scale * inverse : 0.0f;
    const float whole = value == value ? rintf(fminf(fmaxf(value, -127.0f), 127.0f)) : 0.0f;
    q8[d] = static_cast<int8_t>(whole);
    sum += whole;
  }
  return sum;
}

template <typename T>
PYDSTP_KERNEL fold_query_kernel(AttentionReturnParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const DecodeAttentionParams& a = p.attention;
  const int64_t head = block_x(), batch_row = block_y(), head_dim = a.arena.head_dim;
  const AttentionRow row = attention_row(a, batch_row);
  int32_t status = 0;
  if (row_reserve(p, row, &status).len == 0) return;  // the whole block
  const int64_t kv_heads = a.arena.num_kv_heads, pairs = head_dim / 2;
  const int64_t kv = head / (a.num_heads / kv_heads);
  const float* channel_scale = p.sketch.channel_scale + (row.seq * kv_heads + kv) * pairs;
  const T* q = static_cast<const T*>(a.q) + batch_row * a.q_stride + head * head_dim;
  float largest = 0.0f;
  for (int64_t d = thread_idx(); d < head_dim; d += num_threads()) {
    largest = fmaxf(largest, fabsf(to_float(q[d]) * channel_scale[d % pairs]));
  }
  largest = block_max(largest, scratch);
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  const ReturnRow r = return_row(p, batch_row);
  int8_t* q8 = r.q8 + head * q8_size(p.sketch.bits, head_dim);
  const float sum = block_sum(write_q8(p, q, channel_scale, inverse, q8), scratch);
  if (thread_idx() != 0) return;
  r.q_scale[head] = largest / 127.0f * a.scale;
  r.q_sum[head] = ((1 << p.sketch.bits) - 1) * static_cast<int32_t>(sum);
}

// The logit of one head for one entry, by one thread.
PYDSTP_DEVICE float sketch_logit(const AttentionReturnParams& p, const ReturnRow& r, int64_t seq,
                                 int64_t entry, int64_t kv, int64_t head) {
  const KvArena& arena = p.attention.arena;
  const int64_t bits = p.sketch.bits, bytes = sketch_head_bytes(bits, arena.head_dim);
  const uint8_t* codes = sketch_codes(p.sketch, arena, seq, entry, kv);
  const int8_t* q8 = r.q8 + head * q8_size(bits, arena.head_dim);
  int32_t sum = 0;
  for (int64_t j = 0; j < bytes; ++j) {
    const int32_t byte = codes[byte_offset(j)];
    for (int64_t shift = 0, d = j; shift < 8; shift += bits, d += bytes) {
      sum += (byte >> shift & ((1 << bits) - 1)) * q8[d];
    }
  }
  const int32_t whole = 2 * sum - r.q_sum[head];
  const float scale = *sketch_scale_at(p.sketch, arena, seq, entry, kv);
  return static_cast<float>(whole) * r.q_scale[head] * scale;
}

// The same from the key itself, by one warp.
template <typename T>
PYDSTP_DEVICE float exact_logit(const DecodeAttentionParams& a, int64_t batch_row, int64_t seq,
                                int64_t slot, int64_t kv, int64_t head) {
  const T* key = find_row<T>(a.arena, seq, slot) + kv * a.arena.head_dim;
  const T* q = static_cast<const T*>(a.q) + batch_row * a.q_stride + head * a.arena.head_dim;
  float dot = 0.0f;
  for (int64_t d = lane_idx(); d < a.arena.head_dim; d += kWarpSize) {
    dot += to_float(q[d]) * to_float(key[d]);
  }
  return a.scale * warp_sum(dot);
}

// A block's entries [kAttentionChunk] of a reserve from `first` on.
struct EntryChunk {
  const int32_t* slots;
  int64_t seq, first, len, visual_capacity;

  // -1: there is no entry, or it names no slot.
  PYDSTP_HOST_DEVICE int64_t slot(int64_t i) const {
    const int64_t named = i < len ? slots[i] : -1;
    return is_index(named, visual_capacity) ? named : -1;
  }
};

// A block writes the logits [group, kAttentionChunk] of one KV head, -inf where there is no slot:
// neighbouring threads take neighbouring entries, which lie side by side.
PYDSTP_DEVICE void score_by_sketch(const AttentionReturnParams& p, const ReturnRow& r,
                                   const EntryChunk& chunk, int64_t kv, float* logits) {
  const int64_t group = p.attention.num_heads / p.attention.arena.num_kv_heads;
  for (int64_t i = thread_idx(); i < group * kAttentionChunk; i += num_threads()) {
    const int64_t head = kv * group + i / kAttentionChunk, j = i % kAttentionChunk;
    float logit = -INFINITY;
    if (chunk.slot(j) >= 0) logit = sketch_logit(p, r, chunk.seq, chunk.first + j, kv, head);
    logits[i] = logit == logit ? logit : -INFINITY;
  }
}

template <typename T>
PYDSTP_DEVICE void score_by_keys(const DecodeAttentionParams& a, const EntryChunk& chunk,
                                 int64_t batch_row, int64_t kv, float* logits) {
  const int64_t group = a.num_heads / a.arena.num_kv_heads;
  for (int64_t i = warp_idx(); i < group * kAttentionChunk; i += num_warps()) {
    const int64_t head = kv * group + i / kAttentionChunk, slot = chunk.slot(i % kAttentionChunk);
    float logit = -INFINITY;
    if (slot >= 0) logit = exact_logit<T>(a, batch_row, chunk.seq, slot, kv, head);
    if (lane_idx() == 0) logits[i] = logit == logit ? logit : -INFINITY;
  }
}

// A warp sums up the logits [kAttentionChunk] of one head.
PYDSTP_DEVICE void sum_logits(const float* logits, float* maximum, float* sum) {
  const float low = logits[lane_idx()], high = logits[lane_idx() + kWarpSize];
  const float peak = warp_max(fmaxf(low, high));
  const float total = warp_sum(peak == -INFINITY ? 0.0f : expf(low - peak) + expf(high - peak));
  if (lane_idx() != 0) return;
  *maximum = peak;
  *sum = total;
}

template <typename T>
PYDSTP_KERNEL score_reserve_kernel(AttentionReturnParams p) {
  const DecodeAttentionParams& a = p.attention;
  const int64_t chunk = block_x(), kv = block_y(), batch_row = block_z();
  const AttentionRow row = attention_row(a, batch_row);
  int32_t status = 0;
  const ReserveView reserve = row_reserve(p, row, &status);
  if (chunk >= reserve.num_chunks()) return;  // the whole block
  const ReturnRow r = return_row(p, batch_row);
  const int64_t group = a.num_heads / a.arena.num_kv_heads, first = chunk * kAttentionChunk;
  const int64_t place = chunk * a.num_heads + kv * group;
  float* logits = r.logits + place * kAttentionChunk;
  const EntryChunk entries = {reserve.slots + first, row.seq, first,
                              min_of(kAttentionChunk, reserve.len - first),
                              a.arena.visual_capacity};
  for (int64_t i = thread_idx(); i < entries.len; i += num_threads()) {
    if (entries.slot(i) < 0) set_status(a.status, kBadSlot);
  }
  if (p.sketch.bits < 16) {
    score_by_sketch(p, r, entries, kv, logits);
  } else {
    score_by_keys<T>(a, entries, batch_row, kv, logits);
  }
  sync_threads();
  for (int64_t g = warp_idx(); g < group; g += num_warps()) {
    sum_logits(logits + g * kAttentionChunk, r.maxima + place + g, r.sums + place + g);
  }
}

template <typename T>
int launch_return(const AttentionReturnParams& p, void* stream) {
  constexpr int64_t kScratch = kReturnThreads / kWarpSize * sizeof(float);
  const DecodeAttentionParams& a = p.attention;
  const int64_t kv_heads = a.arena.num_kv_heads;
  const Grid heads{a.num_heads, a.batch}, lists{kv_heads, a.batch};
  const Grid chunks{ceil_div(p.reserve_capacity, kAttentionChunk), kv_heads, a.batch};
  DecodeAttentionParams base = a;
  base.returned.len = nullptr;
  int status = launch_chunks<T>(base, stream);
  if (status == 0 && p.sketch.bits < 16) {
    status = PYDSTP_LAUNCH(fold_query_kernel<T>, heads, kAttentionThreads, kScratch, stream, p);
  }
  if (status == 0) {
    status = PYDSTP_LAUNCH(score_reserve_kernel<T>, chunks, kAttentionThreads, 0, stream, p);
  }
  if (status == 0) {
    status = PYDSTP_LAUNCH(select_returned_kernel, lists, kReturnThreads, kScratch, stream, p);
  }
  if (status == 0) status = launch_chunks<T>(a, stream);
  return status != 0 ? status : launch_merge<T>(a, stream);
}

inline int launch_attention_return(const AttentionReturnParams& p, void* stream) {
  switch (p.attention.arena.dtype) {
    case DType::kFloat32:
      return launch_return<float>(p, stream);
    case DType::kBFloat16:
      return launch_return<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
