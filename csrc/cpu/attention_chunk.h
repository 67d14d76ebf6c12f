// Attention over one chunk of cache rows, and the merge of chunks.
#pragma once

#include "cpu/dot.h"
#include "kernels/decode_attention.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int64_t kElementsPerPart = 32768;  // less is not worth waking a thread

template <typename T>
struct ChunkView {
  const T* rows[kAttentionChunk];  // each [2, num_kv_heads, head_dim]
  int num_rows;
  int64_t head_dim;
  int64_t kv_offset;       // of the KV head within K
  int64_t next_kv_offset;  // of the KV head that comes after it
  int64_t v_offset;        // from K to V
  float scale;
};

// A row of the cache is a page of memory or less, so the hardware does not see the next one coming:
// V is asked for while K is read, and the next head's K while V is read.
template <typename T>
static inline void prefetch(const T* p, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(p + i);
}

// scores[g][i] = scale * q[g] . k[i]
template <typename T, int G>
static inline void score_rows(const ChunkView<T>& c, const T* q,
                              float (&scores)[G][kAttentionChunk]) {
  constexpr int R = kAccumulators / G > 4 ? 4 : kAccumulators / G;
  const T* queries[G];
  for (int g = 0; g < G; ++g) queries[g] = q + g * c.head_dim;
  for (int i = 0; i < c.num_rows; i += R) {
    const T* keys[R];
    for (int r = 0; r < R; ++r) {  // the last row is repeated instead of reading on
      keys[r] = c.rows[min_of(i + r, c.num_rows - 1)] + c.kv_offset;
      prefetch(keys[r] + c.v_offset, c.head_dim);
    }
    float dots[G][R];
    dot_rows<T, G, R>(queries, keys, c.head_dim, dots);
    for (int g = 0; g < G; ++g)
      for (int r = 0; r < R && i + r < c.num_rows; ++r) scores[g][i + r] = c.scale * dots[g][r];
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

// out[g] = sum over rows of p[g][i] * v[i], in W vectors of columns from `column` on. The last
// vector of a row may be partial (W is 1 then).
template <typename T, int G, int W, bool kIsWhole = true>
static inline void weigh_columns(const ChunkView<T>& c, const float (&p)[G][kAttentionChunk],
                                 int64_t column, float* out) {
  F32 sums[G][W];
  PYDSTP_UNROLL for (int j = 0; j < G * W; ++j) sums[j / W][j % W] = F32{};
  const int64_t n = kIsWhole ? kLanes : c.head_dim - column;
  const int64_t offset = c.v_offset + c.kv_offset + column;
  for (int i = 0; i < c.num_rows; ++i) {
    prefetch(c.rows[i] + c.next_kv_offset + column, W * kLanes);
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      const F32 v = load_first(c.rows[i] + offset + w * kLanes, n);
      PYDSTP_UNROLL for (int g = 0; g < G; ++g) {
        sums[g][w] = multiply_add(splat(p[g][i]), v, sums[g][w]);
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int w = 0; w < W; ++w)
      store_first(out + g * (c.head_dim + 2) + column + w * kLanes, sums[g][w], n);
}

template <typename T, int G>
static void attend_group(const ChunkView<T>& c, const T* q, float* partial) {
  constexpr int W = G > 2 ? (G > 4 ? 1 : 2) : 4;
  const int64_t stride = c.head_dim + 2;
  float p[G][kAttentionChunk];
  score_rows<T, G>(c, q, p);
  for (int g = 0; g < G; ++g) {
    float* tail = partial + g * stride + c.head_dim;
    exponentiate(p[g], c.num_rows, tail, tail + 1);
  }
  int64_t column = 0;
  for (; column + W * kLanes <= c.head_dim; column += W * kLanes) {
    weigh_columns<T, G, W>(c, p, column, partial);
  }
  for (; column < c.head_dim; column += kLanes) {
    weigh_columns<T, G, 1, false>(c, p, column, partial);
  }
}

// The chunk's part for the query heads of one KV head. partial: [num_heads, head_dim + 2], per head
// the weighted sum of V, the maximum, the sum of p.
template <typename T>
static void attend_heads(const ChunkView<T>& c, int64_t num_heads, const T* q, float* partial) {
  const int64_t stride = c.head_dim + 2;
  int64_t h = 0;
  const auto attend = [&](auto attend_group, int64_t count) {
    attend_group(c, q + h * c.head_dim, partial + h * stride);
    h += count;
  };
  while (num_heads - h >= 8) attend(attend_group<T, 8>, 8);
  if (num_heads - h >= 4) attend(attend_group<T, 4>, 4);
  if (num_heads - h >= 2) attend(attend_group<T, 2>, 2);
  if (num_heads - h >= 1) attend(attend_group<T, 1>, 1);
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
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    F32 total = {};
    for (int64_t c = 0; c < num_chunks; ++c) {
      const F32 part = load_first(partials + c * stride + i, head_dim - i);
      total = multiply_add(splat(weights[c * stride]), part, total);
    }
    store_first(out + i, total * inverse, head_dim - i);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
