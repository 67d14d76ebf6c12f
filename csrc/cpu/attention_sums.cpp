#include "kernels/attention_sums.h"

#include "common/thread_pool.h"
#include "cpu/panel.h"
#include "cpu/rows.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr float kInfinity = __builtin_inff();

// All keys of one KV head and a few of its rows. Row r is head r % group of token r / group.
template <typename T>
struct SumsWork {
  const AttentionSumsParams& p;
  int64_t kv_head, group, depth, width, keys;
  float* k;       // panels
  float* q;       // [kPanelRows, width] words
  float* scores;  // [kPanelRows, keys]

  // How many keys a row sees; none where there is no such row.
  int64_t visible(int64_t row) const {
    if (row >= p.num_queries * group) return 0;
    return p.visible_len ? clamp_to(p.visible_len[row / group], 0, p.num_keys) : p.num_keys;
  }
};

template <typename T>
SumsWork<T> make_sums_work(const AttentionSumsParams& p, int64_t kv_head, float* workspace) {
  float* k = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
  const int64_t width = ceil_div(p.head_dim, 16) * 16, keys = ceil_div(p.num_keys, 16) * 16;
  const int64_t depth = ceil_div(p.head_dim, Word<T>::kElements);
  float* q = k + keys * width;
  return {p, kv_head, p.num_heads / p.num_kv_heads, depth, width, keys, k, q, q + 16 * width};
}

// scores = scale * q k^T of kPanelRows rows with the first `most` keys (at least).
template <typename T>
void score_rows(const SumsWork<T>& w, int64_t first_row, int64_t most) {
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t row = first_row + r, head = w.kv_head * w.group + row % w.group;
    const T* q = static_cast<const T*>(w.p.q) + row / w.group * w.p.q_stride + head * w.p.head_dim;
    const bool is_row = row < w.p.num_queries * w.group;
    const RowsView<T> query = {q, is_row ? 1 : 0, 0, w.p.head_dim};
    for (int64_t i = 0; i < w.depth; i += kLanes) store(w.q + r * w.width + i, query.words(0, i));
  }
  const F32 scale = splat(w.p.scale);
  for_each_panel(ceil_div(w.p.num_keys, kLanes), [&](int64_t first, auto vectors) {
    if (first * kLanes >= most) return;
    constexpr int W = decltype(vectors)::kVectors;
    F32 sums[kPanelRows][W];
    PYDSTP_UNROLL for (int i = 0; i < kPanelRows * W; ++i) sums[i / W][i % W] = F32{};
    multiply_panel<T, W>(w.q, w.width, w.k + first * kLanes * w.depth, w.depth, sums);
    PYDSTP_UNROLL for (int i = 0; i < kPanelRows * W; ++i) {
      store(w.scores + i / W * w.keys + (first + i % W) * kLanes, sums[i / W][i % W] * scale);
    }
  });
}

// Scores of a row become powers relative to the largest of them; returns their sum.
float raise_scores(float* scores, int64_t count) {
  const int64_t end = ceil_div(count, kLanes) * kLanes;
  for (int64_t i = count; i < end; ++i) scores[i] = -kInfinity;
  F32 peaks = splat(-kInfinity), total = {};
  for (int64_t i = 0; i < end; i += kLanes) peaks = larger(load(scores + i), peaks);
  const F32 origin = splat(max_lanes(peaks));
  for (int64_t i = 0; i < end; i += kLanes) {
    const F32 power = exp_of(load(scores + i) - origin);
    store(scores + i, power);
    total = total + power;
  }
  return sum_lanes(total);
}

// Adds what tokens [first_token, end_token) give; `sums` is [num_keys], of each token with per_row.
template <typename T>
void sum_tokens(const SumsWork<T>& w, int64_t first_token, int64_t end_token, float* sums) {
  const int64_t end = end_token * w.group;
  for (int64_t first = first_token * w.group; first < end; first += kPanelRows) {
    const int64_t rows = min_of(kPanelRows, end - first);
    int64_t most = 0;
    for (int64_t r = 0; r < rows; ++r) most = max_of(most, w.visible(first + r));
    if (most > 0) score_rows(w, first, most);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t visible = w.visible(first + r), token = (first + r) / w.group;
      if (visible == 0) continue;
      float* scores = w.scores + r * w.keys;
      const float total = raise_scores(scores, visible) * static_cast<float>(w.group);
      const F32 factor = splat(1.0f / total);
      const auto add = [factor](F32 sum, F32 power) { return multiply_add(power, factor, sum); };
      float* out = sums + (w.p.per_row ? (token - first_token) * w.p.num_keys : 0);
      const float* before = out;
      map_row(out, visible - (w.p.without_last ? 1 : 0), add, before, scores);
    }
  }
}

// The rows of a part and one KV head.
template <typename T>
void sum_part(const SumsWork<T>& w, int64_t part) {
  const AttentionSumsParams& p = w.p;
  const int64_t first = p.num_queries * part / p.num_parts;
  const int64_t end = p.num_queries * (part + 1) / p.num_parts;
  if (first == end) return;
  const T* keys = static_cast<const T*>(p.k) + w.kv_head * p.head_dim;
  pack_transposed(RowsView<T>{keys, p.num_keys, p.k_stride, p.head_dim}, w.k);
  const int64_t place =
      p.per_row ? w.kv_head * p.num_queries + first : part * p.num_kv_heads + w.kv_head;
  sum_tokens(w, first, end, p.out + place * p.num_keys);
}

// Parts differ in work, and late rows often see most: a thread that is free takes the next one.
template <typename T>
void sum_attention(const AttentionSumsParams& p, ThreadPool& pool) {
  const int64_t room = attention_sums_workspace_size(p.num_keys, p.head_dim);
  const int64_t items = p.num_parts * p.num_kv_heads;
  int64_t next = 0;
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      while (true) {
        const int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (i >= items) break;
        sum_part(make_sums_work<T>(p, i % p.num_kv_heads, p.workspace + place * room),
                 p.num_parts - 1 - i / p.num_kv_heads);
      }
    }
  };
  pool.parallel_for(0, min_of(pool.num_threads(), items), 1, work);
}

}  // namespace

void attention_sums(const AttentionSumsParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return sum_attention<float>(p, pool);
    case DType::kBFloat16:
      return sum_attention<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
