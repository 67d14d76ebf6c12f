#include "kernels/linear.h"

#include "common/thread_pool.h"
#include "cpu/dot.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr int64_t kTileRows = 24;         // weight rows whose sums are held at once
constexpr int64_t kChunkBytes = 16384;    // of tokens: half a first-level cache
constexpr int64_t kAheadBytes = 32768;    // of weights that are on their way to the second level
constexpr int64_t kBytesPerPart = 65536;  // less is not worth waking a thread

// M tokens from `token` on against weight rows [begin, end), at most kTileRows. The columns come in
// chunks, so that the part of the tokens that every row meets stays in the first-level cache, and
// the sums of a chunk are where those of the next one start.
template <typename T, int M>
class Tile {
 public:
  Tile(const LinearParams& p, int64_t token, int64_t begin, int64_t end)
      : p_(p), token_(token), begin_(begin), end_(end) {}

  void multiply() {
    for (int64_t column = 0; column < p_.in_features; column += kColumns) {
      const int64_t n = min_of(kColumns, p_.in_features - column);
      pack(column, n);
      for (int64_t row = begin_; row < end_; row += R) add_products(row, column, n);
    }
    for (int64_t row = begin_; row < end_; ++row) store_row(row);
  }

 private:
  static constexpr int R = kAccumulators / M > 8 ? 8 : kAccumulators / M;  // side by side
  static constexpr int kSize = DotBlock<T>::kSize;
  static constexpr int64_t kColumns = kChunkBytes / static_cast<int64_t>(sizeof(T)) / M;
  using Sums = F32[M][R];

  // tokens_: [blocks of columns, M, kSize], the last block filled up with zeros.
  void pack(int64_t column, int64_t n) {
    const T* x = static_cast<const T*>(p_.x) + token_ * p_.in_features + column;
    int64_t i = 0;
    for (; i + kSize <= n; i += kSize) {
      for (int m = 0; m < M; ++m) {
        memcpy(tokens_ + i * M + m * kSize, x + m * p_.in_features + i, kSize * sizeof(T));
      }
    }
    for (int m = 0; m < M && i < n; ++m) {
      T* block = tokens_ + i * M + m * kSize;
      memset(block, 0, kSize * sizeof(T));
      memcpy(block, x + m * p_.in_features + i, static_cast<size_t>(n - i) * sizeof(T));
    }
  }

  // Adds the products of weight rows [row, row + R) in columns [column, column + n).
  void add_products(int64_t row, int64_t column, int64_t n) {
    const T *tokens[M], *rows[R];
    for (int r = 0; r < R; ++r) {  // the last block repeats its last row instead of reading on
      rows[r] = weight_row(min_of(row + r, end_ - 1)) + column;
    }
    Sums sums;
    Sums& held = sums_[(row - begin_) / R];
    copy(held, sums);
    const T* ahead = rows[0] + distance(row, column, n);
    int64_t i = 0;
    for (int r = 1; r <= R; ++r, ahead += p_.in_features) {
      const T* line = ahead;
      for (; i + kSize <= n * r / R; i += kSize) {
        PYDSTP_UNROLL for (int k = 0; k < R; ++k, line += kSize) __builtin_prefetch(line, 0, 2);
        locate(i * M - i, tokens);  // add_block adds i
        add_block(tokens, rows, i, sums);
      }
    }
    if (i < n) add_tail(rows, i, n, sums);
    copy(sums, held);
  }

  static void copy(const Sums& from, Sums& to) {
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
      PYDSTP_UNROLL for (int r = 0; r < R; ++r) to[m][r] = from[m][r];
    }
  }

  // From an element of a row to the one that is wanted kAheadBytes later: some rows below, or at
  // the top of the next chunk. A processor's own prefetching ends with a page, so with a row.
  int64_t distance(int64_t row, int64_t column, int64_t n) const {
    const int64_t num_rows = max_of(R, ceil_div(kAheadBytes, n * static_cast<int64_t>(sizeof(T))));
    if (row + num_rows < end_) return num_rows * p_.in_features;
    if (column + n == p_.in_features) return num_rows * p_.in_features - column;
    return (num_rows - (end_ - begin_)) * p_.in_features + n;
  }

  // The block at i when fewer than kSize columns are left.
  void add_tail(const T* const (&rows)[R], int64_t i, int64_t n, Sums& sums) const {
    T buffer[R][kSize] = {};
    const T *tokens[M], *tails[R];
    locate(i * M, tokens);
    const auto bytes = static_cast<size_t>(n - i) * sizeof(T);
    for (int r = 0; r < R; ++r) tails[r] = static_cast<T*>(memcpy(buffer[r], rows[r] + i, bytes));
    add_block(tokens, tails, 0, sums);
  }

  void locate(int64_t at, const T* (&tokens)[M]) const {
    for (int m = 0; m < M; ++m) tokens[m] = tokens_ + at + m * kSize;
  }

  void store_row(int64_t row) const {
    const Sums& sums = sums_[(row - begin_) / R];
    const float bias = p_.bias ? to_float(static_cast<const T*>(p_.bias)[row]) : 0.0f;
    T* out = static_cast<T*>(p_.out) + token_ * p_.out_features + row;
    for (int m = 0; m < M; ++m) {
      assign(out[m * p_.out_features], sum_lanes(sums[m][(row - begin_) % R]) + bias);
    }
  }

  const T* weight_row(int64_t row) const {
    return static_cast<const T*>(p_.weight) + row * p_.in_features;
  }

  const LinearParams& p_;
  const int64_t token_, begin_, end_;
  Sums sums_[(kTileRows + R - 1) / R] = {};
  alignas(64) T tokens_[M * kColumns];
};

// All tokens against a tile, in the largest blocks that have a kernel.
template <typename T>
void multiply_tile(const LinearParams& p, int64_t begin, int64_t end) {
  int64_t token = 0;
  for (; token + 8 <= p.num_tokens; token += 8) Tile<T, 8>(p, token, begin, end).multiply();
  if (p.num_tokens - token >= 4) Tile<T, 4>(p, token, begin, end).multiply(), token += 4;
  if (p.num_tokens - token >= 2) Tile<T, 2>(p, token, begin, end).multiply(), token += 2;
  if (p.num_tokens - token >= 1) Tile<T, 1>(p, token, begin, end).multiply();
}

template <typename T>
void multiply(const LinearParams& p, ThreadPool& pool) {
  const int64_t row_bytes = max_of(1, p.in_features * static_cast<int64_t>(sizeof(T)));
  const int64_t grain = ceil_div(kBytesPerPart, row_bytes);
  pool.parallel_for(0, p.out_features, grain, [&p](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kTileRows) {
      multiply_tile<T>(p, row, min_of(row + kTileRows, end));
    }
  });
}

}  // namespace

void linear(const LinearParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return multiply<float>(p, pool);
    case DType::kBFloat16:
      return multiply<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
