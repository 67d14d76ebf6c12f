// Attention over one chunk of cache rows, and the merge of chunks.
#pragma once

#include "cpu/attention_values.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int64_t kElementsPerPart = 32768;  // less is not worth waking a thread
constexpr int64_t kKvHeadsTogether = 8;      // KV heads that share one walk over the rows

// Some cache rows, and the KV heads of them to read.
template <typename T>
struct ChunkView {
  const T* rows[kAttentionChunk];  // each [2, num_kv_heads, head_dim]
  int num_rows;
  int64_t head_dim;
  int64_t kv_begin, num_kv;  // num_kv <= kKvHeadsTogether
  int64_t v_offset;          // from K to V
  int64_t v_dim;             // columns of V to read: head_dim, or 0 if only scores are wanted
  float scale;

  // For a monitor: whether row i counts (1 or 0; 0 from num_rows on), and how many of a head's
  // `logits` belong to this chunk.
  float counts[kAttentionChunk];
  int64_t num_logits;
  int64_t logits_stride;  // between heads

  Columns<T> keys() const { return columns_at(0, head_dim); }
  Columns<T> values() const { return columns_at(v_offset, v_dim); }

  Columns<T> columns_at(int64_t offset, int64_t size) const {
    const int64_t begin = offset + kv_begin * head_dim;
    return {rows, size ? num_rows : 0, begin, begin + num_kv * size};
  }
};

// Query heads of the first KV head of a chunk, and where their results go. The next KV head's are
// `group` heads further on.
template <typename T>
struct QueryHeads {
  const T* q;      // [..., head_dim]
  float* partial;  // [..., head_dim + 2]: the weighted sum of V, the maximum, the sum of p
  float* logits;   // [..., num_logits]: scores of rows that count, -inf for others; or nullptr
  int64_t group;
};

template <int G>
using Scores = float[kKvHeadsTogether][G][kAttentionChunk];

// scores[kv][g][i] = scale * q[kv][g] . k[i][kv]; what is left from num_rows on counts for nothing.
// Rows are the outer loop: memory is read in runs of whole rows, and as much is asked for.
template <typename T, int G>
static inline void score_rows(const ChunkView<T>& c, const QueryHeads<T>& heads, Ahead<T>& ahead,
                              Scores<G>& scores) {
  constexpr int R = kAccumulators / G > 8 ? 8 : kAccumulators / G;
  static_assert(kAttentionChunk % R == 0, "sums of a repeated row stay within the chunk");
  for (int i = 0; i < c.num_rows; i += R) {
    for (int64_t kv = 0; kv < c.num_kv; ++kv) {
      const T *queries[G], *keys[R];
      for (int g = 0; g < G; ++g) queries[g] = heads.q + (kv * heads.group + g) * c.head_dim;
      for (int r = 0; r < R; ++r) {  // the last row is repeated instead of reading on
        keys[r] = c.rows[min_of(i + r, c.num_rows - 1)] + (c.kv_begin + kv) * c.head_dim;
      }
      const int64_t read = R * c.head_dim * static_cast<int64_t>(sizeof(T));
      for (int64_t asked = 0; asked < read; asked += kAskedBytes) ahead.ask();
      float dots[G][R];
      dot_rows<T, G, R>(queries, keys, c.head_dim, dots);
      for (int g = 0; g < G; ++g)
        for (int r = 0; r < R; ++r) scores[kv][g][i + r] = c.scale * dots[g][r];
    }
  }
}

// Leaves one head's scores for the monitor.
template <typename T>
static inline void keep_scores(const ChunkView<T>& c, float (&scores)[kAttentionChunk],
                               float* logits) {
  for (int i = c.num_rows; i < kAttentionChunk; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = 0; i < c.num_logits; i += kLanes) {
    const F32 none = splat(-__builtin_inff());
    const F32 kept = load(c.counts + i) > 0.0f ? load(scores + i) : none;
    store_first(logits + i, kept, c.num_logits - i);
  }
}

// Scores become p = exp(score - maximum); *maximum and *sum are theirs. Entries from n on become 0,
// and without any entry the maximum is -inf: such a chunk weighs nothing in the merge.
static void exponentiate(float (&scores)[kAttentionChunk], int n, float* maximum, float* sum) {
  for (int i = n; i < kAttentionChunk; ++i) scores[i] = -__builtin_inff();
  F32 peaks = load(scores);
  for (int i = kLanes; i < kAttentionChunk; i += kLanes) peaks = larger(load(scores + i), peaks);
  *maximum = max_lanes(peaks);
  F32 sums = {};
  for (int i = 0; i < kAttentionChunk; i += kLanes) {
    const F32 p = n > 0 ? exp_of(load(scores + i) - *maximum) : F32{};
    store(scores + i, p);
    sums += p;
  }
  *sum = sum_lanes(sums);
}

template <typename T, int G>
static void attend_together(const ChunkView<T>& c, const QueryHeads<T>& heads, Ahead<T>& ahead) {
  Scores<G> scores;
  score_rows<T, G>(c, heads, ahead, scores);
  for (int64_t kv = 0; kv < c.num_kv; ++kv) {
    float* partial = heads.partial + kv * heads.group * (c.head_dim + 2);
    for (int g = 0; heads.logits && g < G; ++g) {
      keep_scores(c, scores[kv][g], heads.logits + (kv * heads.group + g) * c.logits_stride);
    }
    for (int g = 0; g < G; ++g) {
      float* tail = partial + g * (c.head_dim + 2) + c.head_dim;
      exponentiate(scores[kv][g], c.num_rows, tail, tail + 1);
    }
    if (c.v_dim) {
      const int64_t offset = c.v_offset + (c.kv_begin + kv) * c.head_dim;
      weigh_rows<G>(
          ValueRows<T>{c.rows, c.num_rows, offset, c.head_dim, partial, c.head_dim + 2, &ahead},
          scores[kv][0]);
    }
  }
}

// The chunk's part for all query heads, in the largest blocks that have a kernel. Its keys have
// been asked for; `next` is asked for meanwhile.
template <typename T>
static void attend_heads(const ChunkView<T>& c, QueryHeads<T> heads, const Columns<T>& next) {
  Ahead<T> ahead(c.values(), next);
  int64_t left = heads.group;
  const auto attend = [&](auto attend_block, int64_t count) {
    attend_block(c, heads, ahead);
    heads.q += count * c.head_dim;
    heads.partial += count * (c.head_dim + 2);
    if (heads.logits) heads.logits += count * c.logits_stride;
    left -= count;
  };
  while (left >= 8) attend(attend_together<T, 8>, 8);
  if (left >= 4) attend(attend_together<T, 4>, 4);
  if (left >= 2) attend(attend_together<T, 2>, 2);
  if (left >= 1) attend(attend_together<T, 1>, 1);
  ahead.ask_for_all();
}

// out[i ...] = inverse * the sum over chunks of weight * part, for columns of W vectors; the last
// vector of a row may be partial (W is 1 then).
template <int W, bool kIsWhole = true, typename T>
static inline void merge_columns(const float* partials, int64_t num_chunks, int64_t stride,
                                 int64_t head_dim, int64_t i, F32 inverse, T* out) {
  const int64_t count = kIsWhole ? kLanes : head_dim - i;
  F32 totals[W] = {};
  for (int64_t c = 0; c < num_chunks; ++c) {
    const float* part = partials + c * stride;
    const F32 weight = splat(part[head_dim]);
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      totals[w] = multiply_add(weight, load_first(part + i + w * kLanes, count), totals[w]);
    }
  }
  for (int w = 0; w < W; ++w) store_first(out + i + w * kLanes, totals[w] * inverse, count);
}

// out = one head's softmax over all its chunks; zeros when there is nothing to attend to.
// The maxima in `partials` are replaced by the chunks' weights.
template <typename T>
static void merge_chunks(float* partials, int64_t num_chunks, int64_t stride, int64_t head_dim,
                         T* out) {
  float* weights = partials + head_dim;
  float maximum = -__builtin_inff(), sum = 0.0f;
  for (int64_t c = 0; c < num_chunks; ++c) maximum = max_of_two(weights[c * stride], maximum);
  for (int64_t c = 0; c < num_chunks; ++c) {
    float& weight = weights[c * stride];
    weight = weight == -__builtin_inff() ? 0.0f : exp_of(splat(weight - maximum))[0];
    sum += weight * weights[c * stride + 1];
  }
  const F32 inverse = splat(sum == 0.0f ? 0.0f : 1.0f / sum);
  int64_t i = 0;
  for (; i + 8 * kLanes <= head_dim; i += 8 * kLanes) {
    merge_columns<8>(partials, num_chunks, stride, head_dim, i, inverse, out);
  }
  for (; i < head_dim; i += kLanes) {
    merge_columns<1, false>(partials, num_chunks, stride, head_dim, i, inverse, out);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
