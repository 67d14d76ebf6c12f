// What a monitor does with the scores that attention kept: softmax per head, sum over heads.
#pragma once

#include "cpu/vec.h"
#include "kernels/decode_attention.h"

namespace pydstp {
namespace PYDSTP_TIER {

// The largest of n numbers, -inf if there are none.
static inline float largest(const float* x, int64_t n) {
  F32 peaks = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) peaks = larger(load(x + i), peaks);
  float peak = max_lanes(peaks);
  for (; i < n; ++i) peak = max_of_two(x[i], peak);
  return peak;
}

// x[i] = exp(x[i] - maximum); returns their sum.
static inline float exponentiate_row(float* x, int64_t n, float maximum) {
  F32 sums = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    store_first(x + i, exp_of(load_first(x + i, n - i) - maximum), n - i);
    sums += load_first(x + i, n - i);  // lanes past the end are zero
  }
  return sum_lanes(sums);
}

// x[i] *= factor, or 0 where there is nothing to normalise by.
static inline void multiply_row(float* x, int64_t n, float weight, float sum) {
  const float factor = weight / sum;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 product = sum == 0.0f ? F32{} : load_first(x + i, n - i) * factor;
    store_first(x + i, product, n - i);
  }
}

// A share of nothing is 0.
static inline float share_of(float part, float sum) { return sum == 0.0f ? 0.0f : part / sum; }

// Scores become weight * softmax over themselves; zeros if all are -inf. Returns the sum of the
// softmax.
static inline float weigh_subset(float* logits, int64_t n, float weight) {
  const float maximum = largest(logits, n);
  const bool is_empty = maximum == -__builtin_inff();
  const float sum = is_empty ? 0.0f : exponentiate_row(logits, n, maximum);
  multiply_row(logits, n, weight, sum);
  return share_of(sum, sum);
}

// As above with the normaliser of all chunks: tails [num_chunks] of (maximum, sum of p), `stride`
// elements apart.
static inline float weigh_in_context(float* logits, int64_t n, const float* tails,
                                     int64_t num_chunks, int64_t stride, float weight) {
  float maximum = -__builtin_inff(), sum = 0.0f;
  for (int64_t c = 0; c < num_chunks; ++c) maximum = max_of_two(tails[c * stride], maximum);
  for (int64_t c = 0; c < num_chunks; ++c) {
    const float peak = tails[c * stride];
    if (peak != -__builtin_inff()) {
      sum += exp_of(splat(peak - maximum))[0] * tails[c * stride + 1];
    }
  }
  const float own_sum = exponentiate_row(logits, n, maximum);
  multiply_row(logits, n, weight, sum);
  return share_of(own_sum, sum);
}

// totals[i] += the sum over heads of logits[h * stride + i], heads in ascending order; those of
// weight 0 hold nothing.
static inline void sum_heads(const float* logits, int64_t stride, const float* weights,
                             int64_t num_heads, int64_t n, float (&totals)[kAttentionChunk]) {
  for (int64_t h = 0; h < num_heads; ++h) {
    if (weights[h] == 0.0f) continue;
    const float* head = logits + h * stride;
    for (int64_t i = 0; i < n; i += kLanes) {
      store(totals + i, load(totals + i) + load_first(head + i, n - i));
    }
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
