#include "kernels/prefill_attention.h"

#include "common/thread_pool.h"
#include "cpu/prefill_tiles.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr float kInfinity = __builtin_inff();

// Packs the queries and clears the sums, up to a whole number of kPanelRows.
template <typename T>
void begin_rows(const Work<T>& w) {
  const PrefillAttentionParams& p = w.p;
  for (int64_t row = 0; row < ceil_div(w.num_rows, kPanelRows) * kPanelRows; ++row) {
    const int64_t token = w.tile.first_token + row / w.group;
    const int64_t head = w.tile.kv_head * w.group + row % w.group;
    const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * p.head_dim;
    const RowsView<T> query = {q, row < w.num_rows ? 1 : 0, 0, p.head_dim};
    for (int64_t i = 0; i < w.width; i += kLanes) {
      const F32 words = i < w.depth ? query.words(0, i) : F32{};
      store(w.q + row * w.width + i, p.scale < 0.0f ? Word<T>::negate(words) : words);
      store(w.sums + row * w.width + i, F32{});
    }
    w.maxima[row] = -kInfinity, w.totals[row] = 0.0f;
  }
}

// scores = q k^T of kPanelRows rows with the first num_keys (at least) of num_packed keys.
template <typename T>
void score_keys(const Work<T>& w, int64_t first_row, int64_t num_keys, int64_t num_packed) {
  for_each_panel(ceil_div(num_packed, kLanes), [&](int64_t first, auto width) {
    if (first * kLanes >= num_keys) return;
    constexpr int W = decltype(width)::kVectors;
    F32 sums[kPanelRows][W];
    PYDSTP_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      PYDSTP_UNROLL for (int v = 0; v < W; ++v) sums[r][v] = F32{};
    }
    multiply_panel<T, W>(w.q + first_row * w.width, w.width, w.k + first * kLanes * w.depth,
                         w.depth, sums);
    PYDSTP_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      float* scores = w.scores + r * kPrefillKeys + first * kLanes;
      PYDSTP_UNROLL for (int v = 0; v < W; ++v) store(scores + v * kLanes, sums[r][v]);
    }
  });
}

// Scores of a row become weights relative to its largest score so far; `count` of them are written.
// Returns what the sums so far have to be multiplied with.
template <typename T>
float weigh_scores(const Work<T>& w, int64_t row, int64_t visible, int64_t count) {
  constexpr int64_t kElements = Word<T>::kElements, kStep = kElements * kLanes;
  float* scores = w.scores + row % kPanelRows * kPrefillKeys;
  float* weights = w.weights + row % kPanelRows * kPrefillKeys;
  const int64_t end = ceil_div(visible, kStep) * kStep;
  for (int64_t i = visible; i < end; ++i) scores[i] = -kInfinity;
  F32 peaks = splat(-kInfinity);
  for (int64_t i = 0; i < end; i += kLanes) peaks = larger(load(scores + i), peaks);
  const float before = w.maxima[row], after = max_of_two(max_lanes(peaks), before);
  const float origin = after == -kInfinity ? 0.0f : after;  // no score is above -inf yet
  const float scale = w.scale;
  const auto weigh = [&](const float* s) { return Word<T>::power((load(s) - origin) * scale); };
  F32 total = {};
  for (int64_t i = 0; i < end; i += kStep) {
    const F32 x = weigh(scores + i);
    const F32 words = kElements > 1 ? Word<T>::round(x, weigh(scores + i + kLanes)) : x;
    store(weights + i / kElements, words);
    total = Word<T>::add(total, words, Word<T>::ones());
  }
  for (int64_t i = end; i < count; i += kStep) store(weights + i / kElements, F32{});
  const float decay = Word<T>::power(splat((before - origin) * scale))[0];
  w.maxima[row] = after;
  w.totals[row] = w.totals[row] * decay + sum_lanes(total);
  return decay;
}

// sums = decay * sums + weights times the first num_keys of num_values packed values.
template <typename T>
void add_values(const Work<T>& w, int64_t first_row, const float* decays, int64_t num_keys,
                int64_t num_values) {
  const int64_t depth = ceil_div(num_values, Word<T>::kElements);
  for_each_panel(ceil_div(w.p.head_dim, kLanes), [&](int64_t first, auto width) {
    constexpr int W = decltype(width)::kVectors;
    float* out = w.sums + first_row * w.width + first * kLanes;
    F32 sums[kPanelRows][W];
    PYDSTP_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      const float* row = out + r * w.width;
      PYDSTP_UNROLL for (int v = 0; v < W; ++v) sums[r][v] = load(row + v * kLanes) * decays[r];
    }
    multiply_panel<T, W>(w.weights, kPrefillKeys, w.v + first * kLanes * depth,
                         ceil_div(num_keys, Word<T>::kElements), sums);
    PYDSTP_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      PYDSTP_UNROLL for (int v = 0; v < W; ++v) store(out + r * w.width + v * kLanes, sums[r][v]);
    }
  });
}

// The same where a value that some row must not see is infinite or NaN: weight 0 does not hide it.
// Each row is computed with the other values taken out.
template <typename T>
void add_values_by_row(const Work<T>& w, int64_t first_row, const float* decays, int64_t first_key,
                       int64_t num_values) {
  float* sums = w.sums + first_row * w.width;
  const auto bytes = static_cast<size_t>(kPanelRows * w.width) * sizeof(float);
  memcpy(w.saved, sums, bytes);
  for (int64_t row = 0; row < kPanelRows; ++row) {
    const int64_t visible = w.visible(first_row + row, first_key, num_values);
    pack_rows(w.rows_of(w.p.v, w.p.v_stride, first_key, visible), w.v);
    add_values(w, first_row, decays, visible, visible);
    const auto row_bytes = static_cast<size_t>(w.width) * sizeof(float);
    memcpy(w.saved + row * w.width, sums + row * w.width, row_bytes);
    for (int64_t other = row + 1; other < kPanelRows; ++other) {
      memcpy(sums + other * w.width, w.saved + other * w.width, row_bytes);
    }
  }
  memcpy(sums, w.saved, bytes);
  pack_rows(w.rows_of(w.p.v, w.p.v_stride, first_key, num_values), w.v);
}

// kPanelRows rows against a block of packed keys and values.
template <typename T>
void attend_rows(const Work<T>& w, int64_t first_row, int64_t first_key, int64_t count,
                 bool has_specials) {
  int64_t visible[kPanelRows], most = 0, least = count;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    visible[r] = w.visible(first_row + r, first_key, count);
    most = max_of(most, visible[r]), least = min_of(least, visible[r]);
  }
  if (most == 0) return;
  score_keys(w, first_row, most, count);
  float decays[kPanelRows];
  for (int64_t r = 0; r < kPanelRows; ++r) {
    decays[r] = weigh_scores<T>(w, first_row + r, visible[r], most);
  }
  if (has_specials && least < count) {
    return add_values_by_row(w, first_row, decays, first_key, count);
  }
  add_values(w, first_row, decays, most, count);
}

// A row's sum over the sum of its weights; zero for a row that sees nothing.
template <typename T>
void end_rows(const Work<T>& w) {
  const PrefillAttentionParams& p = w.p;
  for (int64_t row = 0; row < w.num_rows; ++row) {
    const int64_t token = w.tile.first_token + row / w.group;
    const int64_t head = w.tile.kv_head * w.group + row % w.group;
    T* out = static_cast<T*>(p.out) + (token * p.num_heads + head) * p.head_dim;
    const bool is_blind = w.visible(row, 0, w.tile.num_keys) == 0;
    const F32 factor = splat(is_blind ? 0.0f : 1.0f / w.totals[row]);
    for (int64_t i = 0; i < p.head_dim; i += kLanes) {
      store_first(out + i, load(w.sums + row * w.width + i) * factor, p.head_dim - i);
    }
  }
}

// Asks for keys and values of a later block: rows lie too far apart to be foreseen.
template <typename T>
void prefetch_keys(const Work<T>& w, int64_t first_key, int64_t count) {
  const int64_t end = min_of(first_key + count, w.tile.num_keys);
  for (int64_t key = first_key; key < end; ++key) {
    const T* k = w.rows_of(w.p.k, w.p.k_stride, key, 1).first;
    const T* v = w.rows_of(w.p.v, w.p.v_stride, key, 1).first;
    for (int64_t i = 0; i < w.p.head_dim; i += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(k + i, 0, 2);
      __builtin_prefetch(v + i, 0, 2);
    }
  }
}

template <typename T>
void attend_tile(const Work<T>& w) {
  begin_rows(w);
  int64_t end = 0;
  for (int64_t row = 0; row < w.num_rows; row += w.group) {
    end = max_of(end, w.visible(row, 0, w.tile.num_keys));
  }
  const int64_t ahead = ceil_div(kPrefillKeys * kPanelRows, w.num_rows);
  for (int64_t key = 0; key < end; key += kPrefillKeys) {
    const int64_t count = min_of(kPrefillKeys, end - key);
    pack_transposed(w.rows_of(w.p.k, w.p.k_stride, key, count), w.k);
    const bool has_specials = pack_rows(w.rows_of(w.p.v, w.p.v_stride, key, count), w.v);
    for (int64_t row = 0; row < w.num_rows; row += kPanelRows) {
      attend_rows(w, row, key, count, has_specials);
      prefetch_keys(w, key + kPrefillKeys + row / kPanelRows * ahead, ahead);
    }
  }
  end_rows(w);
}

// Tiles differ in work: a thread that is free takes the next one.
template <typename T>
void attend(const PrefillAttentionParams& p, ThreadPool& pool) {
  const Tiles tiles(p, pool.num_threads());
  const int64_t room = prefill_workspace_size(p.num_heads / p.num_kv_heads, p.head_dim);
  int64_t next = 0;
  const auto work = [&p, &tiles, &next, room](int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      while (true) {
        const int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (i >= tiles.count()) break;
        attend_tile(make_work<T>(p, tiles.at(i), p.workspace + place * room));
      }
    }
  };
  pool.parallel_for(0, min_of(pool.num_threads(), tiles.count()), 1, work);
}

}  // namespace

void prefill_attention(const PrefillAttentionParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return attend<float>(p, pool);
    case DType::kBFloat16:
      return attend<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
