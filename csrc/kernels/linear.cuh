// Grid: (blocks of weight rows, blocks of M tokens). A warp multiplies a few rows with M
// tokens: its lanes take 16 bytes of every row in turn, and of every token. A second kernel, a
// token at a time, is for rows that do not start at multiples of 16 bytes.
//
// In both, a lane adds its products up in the order of the columns and lanes are summed as a
// butterfly, so a token's bits depend neither on the kernel nor on the tokens beside it.
#pragma once

#include "common/math.h"
#include "kernels/linear.h"
#include "simt/simt.h"

namespace pydstp {

constexpr int kLinearThreads = 128;

// Rows of a warp: the more tokens, the more often each of them would be read again otherwise.
template <int M>
constexpr int kLinearRows = M >= 4 ? 4 : 2;

template <typename T>
constexpr int kLinearVector = 16 / sizeof(T);

// The row of weights that a warp's number r is; the last one again where there are no more.
template <typename T>
PYDSTP_DEVICE const T* weight_row(const LinearParams& p, int64_t row) {
  return static_cast<const T*>(p.weight) + min_of(row, p.out_features - 1) * p.in_features;
}

template <typename T>
PYDSTP_DEVICE void store_output(const LinearParams& p, int64_t token, int64_t row, float sum) {
  const float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[row]) : 0.0f;
  assign(static_cast<T*>(p.out)[token * p.out_features + row], sum + bias);
}

template <typename T>
PYDSTP_DEVICE void widen(const Bytes16& bytes, float (&out)[kLinearVector<T>]) {
  T values[kLinearVector<T>];
  memcpy(values, bytes.words, sizeof(values));
  PYDSTP_UNROLL for (int j = 0; j < kLinearVector<T>; ++j) out[j] = to_float(values[j]);
}

// Adds the products of one lane's 16 bytes of every row.
template <typename T, int M>
PYDSTP_DEVICE void add_products(const T* x, int64_t stride, const T* const (&rows)[kLinearRows<M>],
                                int64_t column, float (&sums)[kLinearRows<M>][M]) {
  constexpr int kVector = kLinearVector<T>, kRows = kLinearRows<M>;
  float weights[kRows][kVector];
  PYDSTP_UNROLL for (int r = 0; r < kRows; ++r) {
    widen<T>(stream_16(rows[r] + column), weights[r]);
  }
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
    float token[kVector];
    widen<T>(load_16(x + m * stride + column), token);
    PYDSTP_UNROLL for (int r = 0; r < kRows; ++r) {
      PYDSTP_UNROLL for (int j = 0; j < kVector; ++j) {
        sums[r][m] = fmaf(weights[r][j], token[j], sums[r][m]);
      }
    }
  }
}

// A warp's rows with M tokens from `token` on.
template <typename T, int M>
PYDSTP_DEVICE void multiply_rows(const LinearParams& p, int64_t token) {
  constexpr int kRows = kLinearRows<M>;
  const int64_t first = (block_x() * num_warps() + warp_idx()) * kRows;
  if (first >= p.out_features) return;  // the whole warp
  const T* x = static_cast<const T*>(p.x) + token * p.in_features;
  const T* rows[kRows];
  PYDSTP_UNROLL for (int r = 0; r < kRows; ++r) rows[r] = weight_row<T>(p, first + r);
  float sums[kRows][M] = {};
  constexpr int64_t kStep = kWarpSize * kLinearVector<T>;
  PYDSTP_UNROLL_BY(4)
  for (int64_t i = lane_idx() * kLinearVector<T>; i < p.in_features; i += kStep) {
    add_products<T, M>(x, p.in_features, rows, i, sums);
  }
  PYDSTP_UNROLL for (int r = 0; r < kRows; ++r) {
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
      const float sum = warp_sum(sums[r][m]);
      const bool is_writer = lane_idx() == 0 && first + r < p.out_features;
      if (is_writer) store_output<T>(p, token + m, first + r, sum);
    }
  }
}

template <typename T, int M>
PYDSTP_KERNEL linear_kernel(LinearParams p) {
  multiply_rows<T, M>(p, block_y() * M);
}

// A warp's row with one token, wherever they start.
template <typename T>
PYDSTP_DEVICE void multiply_any_row(const LinearParams& p, int64_t token) {
  const int64_t row = block_x() * num_warps() + warp_idx();
  if (row >= p.out_features) return;  // the whole warp
  const T* x = static_cast<const T*>(p.x) + token * p.in_features;
  const T* weights = weight_row<T>(p, row);
  constexpr int64_t kStep = kWarpSize * kLinearVector<T>;
  float sum = 0.0f;
  for (int64_t i = lane_idx() * kLinearVector<T>; i < p.in_features; i += kStep) {
    for (int64_t j = i; j < min_of(i + kLinearVector<T>, p.in_features); ++j) {
      sum = fmaf(to_float(weights[j]), to_float(x[j]), sum);
    }
  }
  sum = warp_sum(sum);
  if (lane_idx() == 0) store_output<T>(p, token, row, sum);
}

template <typename T>
PYDSTP_KERNEL linear_any_kernel(LinearParams p) {
  multiply_any_row<T>(p, block_y());
}

// The first blocks * M tokens of p, which then begins behind them.
template <typename T, int M>
int launch_tokens(LinearParams& p, void* stream) {
  const int64_t blocks = p.num_tokens / M;
  constexpr int64_t kRows = kLinearThreads / kWarpSize * kLinearRows<M>;
  const Grid grid{ceil_div(p.out_features, kRows), blocks};
  const int status = PYDSTP_LAUNCH((linear_kernel<T, M>), grid, kLinearThreads, 0, stream, p);
  p.x = static_cast<const T*>(p.x) + blocks * M * p.in_features;
  p.out = static_cast<T*>(p.out) + blocks * M * p.out_features;
  p.num_tokens -= blocks * M;
  return status;
}

template <typename T>
int launch_any_tokens(const LinearParams& p, void* stream) {
  const Grid grid{ceil_div(p.out_features, kLinearThreads / kWarpSize), p.num_tokens};
  return PYDSTP_LAUNCH(linear_any_kernel<T>, grid, kLinearThreads, 0, stream, p);
}

// Whether all rows start at multiples of 16 bytes.
template <typename T>
bool is_aligned(const LinearParams& p) {
  const auto places = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.weight);
  return places % 16 == 0 && p.in_features % kLinearVector<T> == 0;
}

template <typename T>
int launch_linear_of(LinearParams p, void* stream) {
  if (!is_aligned<T>(p)) return launch_any_tokens<T>(p, stream);
  int status = launch_tokens<T, 8>(p, stream);
  if (status == 0) status = launch_tokens<T, 4>(p, stream);
  if (status == 0) status = launch_tokens<T, 2>(p, stream);
  return status != 0 ? status : launch_tokens<T, 1>(p, stream);
}

inline int launch_linear(const LinearParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_linear_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_linear_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
