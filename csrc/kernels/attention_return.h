// Attention to a list and text in which tokens outside the list, the reserve, may join at once.
#pragma once

#include "kernels/decode_attention.h"
#include "kernels/key_sketch.h"

namespace pydstp {

// Every query head h of a row scores the slots t of its sequence's reserve with the key sketch:
//   logit[h, t] = scale * q[h] . sketch of k[t]
// (NaN counts as -inf) and compares them with all it attends to: Z[h] is the sum of exp over list
// and text, with exact keys, and over the reserve, with sketched ones. Slots are ranked by
//   share[t] = mean over heads of exp(logit[h, t]) / Z[h],
// all heads together, or those of each KV head alone; ties: the lowest slot. The best max_returned
// are attended to beside list and text, with exact keys and values. With mass > 0 they are taken in
// order only until the shares of those left add up to less than that.
//
// Below 16 bits, q[h] * channel_scale becomes int8, the largest of a head 127, rounded to even:
//   logit = float(2 q8 . u - (2^bits - 1) sum(q8)) * (largest / 127 * scale) * sketch.scales[t]
// is the same, bit for bit, everywhere.
struct AttentionReturnParams {
  DecodeAttentionParams attention;  // `returned` is written; lists are sorted ascending
  KeySketch sketch;
  const int32_t* reserve_indices;  // [max_batch, reserve_capacity] visual slots, none in the list
                                   // and none twice, in the order of the sketch's entries; those
                                   // out of range are skipped
  const int32_t* reserve_len;      // [max_batch], at most visual_capacity
  const int32_t* max_returned;     // [max_batch]; 0: the row is attended to as ever
  const int32_t* per_head;         // [max_batch] nonzero: each KV head has its own; or nullptr
  const float* mass;               // [max_batch], or nullptr: all 0
  void* workspace;                 // [batch, row_bytes] for ReturnRow
  int64_t row_bytes;               // return_row_bytes
  int64_t reserve_capacity;
  int64_t reserve_group;  // rows of layers in another group return nothing; -1: all groups
};

// A row with max_returned 0, or without a reserve, costs and gives what decode_attention does. A
// row's result does not depend on the batch, its neighbours or the number of threads.
void attention_return_cpu(const AttentionReturnParams& p, ThreadPool& pool);
void attention_return_simt(const AttentionReturnParams& p);
int attention_return_cuda(const AttentionReturnParams& p, void* stream);

// What a row needs to know of its reserve.
struct ReserveView {
  const int32_t* slots;
  int64_t len;  // 0: nothing may return
  int64_t max_returned;
  bool per_head;
  float mass;

  PYDSTP_HOST_DEVICE int64_t num_chunks() const { return ceil_div(len, kAttentionChunk); }
};

// seq and group are within range.
static inline PYDSTP_HOST_DEVICE ReserveView view_reserve(const AttentionReturnParams& p,
                                                          int64_t seq, int64_t group,
                                                          int32_t* status) {
  ReserveView view = {p.reserve_indices + seq * p.reserve_capacity, 0, 0, false, 0.0f};
  const int64_t max_returned = p.max_returned[seq], len = p.reserve_len[seq];
  if (max_returned == 0 || (p.reserve_group != -1 && group != p.reserve_group)) return view;
  view.max_returned = clamp_to(max_returned, 0, p.attention.returned.capacity);
  const int64_t most = min_of(p.reserve_capacity, p.attention.arena.visual_capacity);
  view.len = view.max_returned ? clamp_to(len, 0, most) : 0;
  const bool is_len = len >= 0 && len <= most;
  if (view.max_returned != max_returned || !is_len) *status |= kBadLength;
  view.per_head = p.per_head && p.per_head[seq] != 0;
  view.mass = p.mass ? p.mass[seq] : 0.0f;
  return view;
}

// Of a head's q8: those that its codes have room for. Plane p, of codes in place p of a byte, has
// channels [p * sketch_head_bytes, (p + 1) * sketch_head_bytes).
static inline PYDSTP_HOST_DEVICE int64_t q8_size(int64_t bits, int64_t head_dim) {
  return bits > 8 ? 0 : 8 / bits * sketch_head_bytes(bits, head_dim);
}

// A row's part of the workspace; chunks are those of its reserve.
struct ReturnRow {
  int8_t* q8;        // [num_heads, q8_size], zeros where there is no channel
  float* q_scale;    // [num_heads] largest / 127 * scale
  int32_t* q_sum;    // [num_heads] (2^bits - 1) * sum of q8
  float* logits;     // [chunks, num_heads, 64]
  float* maxima;     // [chunks, num_heads] of the logits
  float* sums;       // [chunks, num_heads] of exp(logit - maximum)
  float* peak;       // [num_heads] the largest of all scores and logits
  float* factor;     // [num_heads] 1 / (Z / exp(peak) * heads that a mean is over)
  float* shares;     // [num_kv_heads, chunks, 64], without per_head only the first of them
  float* best;       // [num_kv_heads, chunks] the largest share, or a bound of it
  int32_t* is_open;  // [num_kv_heads, chunks] nonzero: the shares are there
};

// Takes n elements of 4 bytes, and what fills the last 64 bytes.
template <typename T>
static inline PYDSTP_HOST_DEVICE void take_part(char*& next, int64_t n, T** part) {
  *part = reinterpret_cast<T*>(next);
  next += ceil_div(n, 16) * 64;
}

static inline PYDSTP_HOST_DEVICE ReturnRow return_row(const AttentionReturnParams& p, int64_t row) {
  const int64_t heads = p.attention.num_heads, kv_heads = p.attention.arena.num_kv_heads;
  const int64_t chunks = ceil_div(p.reserve_capacity, kAttentionChunk);
  char* next = static_cast<char*>(p.workspace) + row * p.row_bytes;
  ReturnRow r;
  take_part(next, heads * q8_size(p.sketch.bits, p.attention.arena.head_dim) / 4, &r.q8);
  take_part(next, heads, &r.q_scale);
  take_part(next, heads, &r.q_sum);
  take_part(next, chunks * heads * kAttentionChunk, &r.logits);
  take_part(next, chunks * heads, &r.maxima);
  take_part(next, chunks * heads, &r.sums);
  take_part(next, heads, &r.peak);
  take_part(next, heads, &r.factor);
  take_part(next, kv_heads * chunks * kAttentionChunk, &r.shares);
  take_part(next, kv_heads * chunks, &r.best);
  take_part(next, kv_heads * chunks, &r.is_open);
  return r;
}

// Enough for each row: the sum of the parts, each filled up to 64 bytes.
static inline int64_t return_row_bytes(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                       int64_t bits, int64_t reserve_capacity) {
  const int64_t chunks = ceil_div(reserve_capacity, kAttentionChunk);
  const int64_t q8 = num_heads * q8_size(bits, head_dim);
  const int64_t by_head = 4 * num_heads + chunks * num_heads * (kAttentionChunk + 2);
  const int64_t by_list = num_kv_heads * chunks * (kAttentionChunk + 2);
  return ceil_div(q8 + 4 * (by_head + by_list), 64) * 64 + 11 * 64;
}

}  // namespace pydstp
