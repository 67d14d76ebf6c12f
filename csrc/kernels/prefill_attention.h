// Many query rows against many keys, block by block: prompts and pictures.
#pragma once

#include "common/dtype.h"
#include "common/math.h"

namespace pydstp {

class ThreadPool;

// Keys are taken in blocks of this many, counted from the first key of a segment: that fixes every
// result bit for bit. Query rows of a KV head share a packed block, up to about this many rows at a
// time.
constexpr int64_t kPrefillKeys = 512;
constexpr int64_t kPrefillRows = 1024;

struct PrefillAttentionParams {
  const void* q;               // [num_queries, num_heads, head_dim]; a row is contiguous
  const void* k;               // [num_keys, num_kv_heads, head_dim]; likewise
  const void* v;               // [num_keys, num_kv_heads, head_dim]; likewise
  const int32_t* segments;     // [num_segments + 1] ascending from 0: rows [segments[i], segments[i
                               // + 1]) of q, k and v see each other and no others; or nullptr: one
                               // segment of num_queries rows and num_keys keys
  const int32_t* visible_len;  // [num_queries]: how many keys of its segment a row sees, the first
                               // ones, clamped to what there is; or nullptr: all
  float* workspace;            // [threads of the pool, prefill_workspace_size()]
  void* out;                   // [num_queries, num_heads, head_dim], contiguous
  int64_t num_queries, num_keys, num_heads, num_kv_heads, head_dim, num_segments;
  int64_t q_stride, k_stride, v_stride;  // between rows, in elements
  float scale;
  DType dtype;  // of q, k, v and out
};

// num_heads is a multiple of num_kv_heads; query head h reads KV head h / (heads per KV head). A
// row that sees no key is zero. A row's result depends on its query and on the keys that it sees,
// not on other rows, on keys that it does not see or on the number of threads.
void prefill_attention_cpu(const PrefillAttentionParams& p, ThreadPool& pool);

// Query rows that share a packed block of keys, at most: tokens times heads of a group, rounded up
// to whole groups of any tier.
static inline int64_t prefill_row_capacity(int64_t heads_per_kv_head) {
  return max_of(kPrefillRows, heads_per_kv_head) + 16;
}

// Floats that one thread needs: queries and sums of the rows, a block of keys and values, scores
// and weights of a few rows, and two numbers per row. Vectors are rounded up to 16 lanes.
static inline int64_t prefill_workspace_size(int64_t heads_per_kv_head, int64_t head_dim) {
  const int64_t rows = prefill_row_capacity(heads_per_kv_head);
  const int64_t width = ceil_div(head_dim, 16) * 16;
  return (2 * rows + 2 * kPrefillKeys + 16) * width + 2 * 16 * kPrefillKeys + 2 * rows + 16;
}

}  // namespace pydstp
