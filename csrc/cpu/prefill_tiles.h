// How prefill attention is cut into tiles, and what a thread holds of one.
#pragma once

#include "cpu/panel.h"
#include "kernels/prefill_attention.h"

namespace pydstp {
namespace PYDSTP_TIER {

// Query rows of one KV head and the keys they look at. Row r is head r % group of token r / group.
struct Tile {
  int64_t kv_head, first_token, num_tokens, first_key, num_keys;
};

// The tiles of all segments and KV heads, smaller ones where there would be too few to share. Late
// rows of a segment come first: where they see more than early ones, the threads end together.
class Tiles {
 public:
  explicit Tiles(const PrefillAttentionParams& p, int64_t num_threads = 1) : p_(p) {
    constexpr int64_t kTilesPerThread = 8, kFewRows = 128;
    const int64_t share = p.num_queries * p.num_heads / (kTilesPerThread * num_threads);
    const int64_t rows = clamp_to(share, kFewRows, kPrefillRows);
    rows_ = max_of(1, rows / (p.num_heads / p.num_kv_heads));
    for (int64_t i = 0; i < p.num_segments; ++i) count_ += tiles_of(i) * p.num_kv_heads;
  }

  int64_t count() const { return count_; }

  Tile at(int64_t index) const {
    int64_t i = 0;
    for (; index >= tiles_of(i) * p_.num_kv_heads; ++i) index -= tiles_of(i) * p_.num_kv_heads;
    const int64_t tiles = tiles_of(i), turn = tiles - 1 - index % tiles, start = begin_of(i);
    const int64_t size = begin_of(i + 1) - start;
    const int64_t first = size * turn / tiles, end = size * (turn + 1) / tiles;
    const int64_t num_keys = p_.segments ? size : p_.num_keys;
    return {index / tiles, start + first, end - first, start, num_keys};
  }

 private:
  int64_t begin_of(int64_t i) const {
    return p_.segments ? p_.segments[i] : (i ? p_.num_queries : 0);
  }
  int64_t tiles_of(int64_t i) const { return ceil_div(begin_of(i + 1) - begin_of(i), rows_); }

  const PrefillAttentionParams& p_;
  int64_t rows_, count_ = 0;
};

// What a thread holds of a tile.
template <typename T>
struct Work {
  const PrefillAttentionParams& p;
  Tile tile;
  int64_t group, num_rows, depth, width;
  float scale;      // of scores that become powers; not negative, the sign is with the queries
  float *q, *sums;  // [num_rows, width]: words of the queries; weighted sums of values
  float *k, *v;     // panels of one block of keys
  float *scores, *weights;  // [kPanelRows, kPrefillKeys]; weights are words
  float* saved;             // [kPanelRows, width]
  float *maxima, *totals;   // [num_rows]: of the scores so far, of the weights so far

  // How many of the block's keys a row sees.
  int64_t visible(int64_t row, int64_t first_key, int64_t count) const {
    if (row >= num_rows) return 0;
    const int32_t* lens = p.visible_len;
    const int64_t len = lens ? lens[tile.first_token + row / group] : tile.num_keys;
    return clamp_to(min_of(len, tile.num_keys) - first_key, 0, count);
  }

  RowsView<T> rows_of(const void* data, int64_t stride, int64_t first_key, int64_t count) const {
    const int64_t row = tile.first_key + first_key;
    const T* first = static_cast<const T*>(data) + row * stride + tile.kv_head * p.head_dim;
    return {first, count, stride, p.head_dim};
  }
};

template <typename T>
static inline Work<T> make_work(const PrefillAttentionParams& p, const Tile& tile,
                                float* workspace) {
  const int64_t group = p.num_heads / p.num_kv_heads, num_rows = tile.num_tokens * group;
  const int64_t rows = prefill_row_capacity(group), block = 16 * kPrefillKeys;
  const int64_t width = ceil_div(p.head_dim, 16) * 16;
  float* next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
  const auto take = [&next](int64_t size) { return next += size, next - size; };
  return {p,
          tile,
          group,
          num_rows,
          ceil_div(p.head_dim, Word<T>::kElements),
          width,
          max_of_two(__builtin_fabsf(p.scale) * Word<T>::kPower, 1e-30f),
          take(rows * width),
          take(rows * width),
          take(kPrefillKeys * width),
          take(kPrefillKeys * width),
          take(block),
          take(block),
          take(16 * width),
          take(rows),
          take(rows)};
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
