// How much attention keys get from many query rows, without a matrix of all scores.
#pragma once

#include "common/dtype.h"
#include "common/math.h"

namespace pydstp {

class ThreadPool;

struct AttentionSumsParams {
  const void* q;               // [num_queries, num_heads, head_dim]; a row is contiguous
  const void* k;               // [num_keys, num_kv_heads, head_dim]; likewise
  const int32_t* visible_len;  // [num_queries]: how many keys a row sees, the first ones, clamped
                               // to what there is; or nullptr: all
  float* workspace;            // [threads of the pool, attention_sums_workspace_size()]
  float* out;                  // [num_parts, num_kv_heads, num_keys], or per_row [num_kv_heads,
                               // num_queries, num_keys]; contiguous, all zeros
  int64_t num_queries, num_keys, num_heads, num_kv_heads, head_dim;
  int64_t num_parts;           // rows are cut into so many runs, each with sums of its own
  int64_t q_stride, k_stride;  // between rows, in elements
  float scale;
  DType dtype;        // of q and k
  bool per_row;       // a sum for each row, or one for all of a part
  bool without_last;  // what a row gives the last key that it sees is left out
};

// out = attention, mean over the query heads of a KV head. num_heads is a multiple of num_kv_heads;
// query head h reads KV head h / (heads per KV head). A row that sees no key adds nothing. Rows of
// a part are added in order, whatever the number of threads.
void attention_sums_cpu(const AttentionSumsParams& p, ThreadPool& pool);

// Floats that one thread needs: the keys of a head, and queries and scores of a few rows.
static inline int64_t attention_sums_workspace_size(int64_t num_keys, int64_t head_dim) {
  const int64_t width = ceil_div(head_dim, 16) * 16, keys = ceil_div(num_keys, 16) * 16;
  return (keys + 16) * width + 16 * keys + 16;
}

}  // namespace pydstp
