// quantise_rows and dequantise_rows. Grid of both: (blocks of rows, groups of columns). A warp
// takes one group of one row, a lane four neighbouring columns of it.
#pragma once

#include "kernels/quantised.h"
#include "simt/simt.h"

namespace pydstp {

constexpr int64_t kGroupBytes = kTileRows * kGroupColumns;
constexpr int kRowThreads = 128;              // of quantise_rows
constexpr float kRoundToWhole = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
constexpr int kTileThreads =
    kTileRows * kWarpSize;  // of dequantise_rows: a tile is read by a block

// A lane's four columns of a group; zeros past the end. row: [in_features].
template <typename T>
PYDSTP_DEVICE void load_columns(const T* row, int64_t group, int64_t in_features,
                                float (&out)[kStepColumns]) {
  const int64_t first = group * kGroupColumns + lane_idx() * kStepColumns;
  PYDSTP_UNROLL for (int j = 0; j < kStepColumns; ++j) {
    out[j] = first + j < in_features ? to_float(row[first + j]) : 0.0f;
  }
}

// The largest magnitude of a warp's group; NaN passes it by.
PYDSTP_DEVICE float largest_of_group(const float (&x)[kStepColumns]) {
  return warp_max(fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3]))));
}

// The integers nearest to four numbers, plus `offset`, as bytes.
PYDSTP_DEVICE uint32_t round_to_bytes(const float (&x)[kStepColumns], int offset) {
  uint32_t bytes = 0;
  PYDSTP_UNROLL for (int j = 0; j < kStepColumns; ++j) {
    const int whole = static_cast<int>(x[j] + kRoundToWhole - kRoundToWhole) + offset;
    bytes |= (static_cast<uint32_t>(whole) & 0xffu) << (8 * j);
  }
  return bytes;
}

// Where the codes of a lane's four columns are.
PYDSTP_DEVICE uint8_t* codes_of(const QuantisedMatrix& m, int64_t row, int64_t group) {
  const int64_t place = row / kTileRows * m.num_groups() + group;
  return m.codes + place * kGroupBytes + (lane_idx() * kTileRows + row % kTileRows) * kStepColumns;
}

PYDSTP_DEVICE BFloat16* scale_of(const QuantisedMatrix& m, int64_t row, int64_t group) {
  return m.scales + (row / kTileRows * m.num_groups() + group) * kTileRows + row % kTileRows;
}

template <typename T>
PYDSTP_KERNEL quantise_rows_kernel(QuantiseRowsParams p) {
  const int64_t group = block_y(), i = block_x() * num_warps() + warp_idx(), row = p.first_row + i;
  if (i >= p.num_rows) return;  // the whole warp
  float x[kStepColumns];
  load_columns(static_cast<const T*>(p.x) + i * p.matrix.in_features, group, p.matrix.in_features,
               x);
  const float largest = largest_of_group(x);
  const bool is_usual = largest >= kSmallestGroup;
  BFloat16 scale = {0};
  if (is_usual) assign(scale, largest / 127.0f);
  PYDSTP_UNROLL for (int j = 0; j < kStepColumns; ++j) {
    x[j] = is_usual ? x[j] / to_float(scale) : 0.0f;
  }
  *reinterpret_cast<uint32_t*>(codes_of(p.matrix, row, group)) = round_to_bytes(x, 128);
  if (lane_idx() == 0) *scale_of(p.matrix, row, group) = scale;
}

template <typename T>
PYDSTP_KERNEL dequantise_rows_kernel(DequantiseRowsParams p) {
  const QuantisedMatrix& m = p.matrix;
  const int64_t group = block_y(), tile = p.first_row / kTileRows + block_x();
  const int64_t row = tile * kTileRows + warp_idx(), i = row - p.first_row;
  if (!is_index(i, p.num_rows)) return;
  const uint8_t* codes = codes_of(m, row, group);
  const float scale = to_float(*scale_of(m, row, group));
  const int64_t first = group * kGroupColumns + lane_idx() * kStepColumns;
  T* out = static_cast<T*>(p.out) + i * m.in_features + first;
  PYDSTP_UNROLL for (int j = 0; j < kStepColumns; ++j) {
    if (first + j < m.in_features) assign(out[j], static_cast<float>(codes[j] - 128) * scale);
  }
}

template <typename T>
int launch_quantise_rows_of(const QuantiseRowsParams& p, void* stream) {
  const Grid grid{ceil_div(p.num_rows, kRowThreads / kWarpSize), p.matrix.num_groups()};
  return PYDSTP_LAUNCH(quantise_rows_kernel<T>, grid, kRowThreads, 0, stream, p);
}

inline int launch_quantise_rows(const QuantiseRowsParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_quantise_rows_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_quantise_rows_of<BFloat16>(p, stream);
  }
  return 0;
}

template <typename T>
int launch_dequantise_rows_of(const DequantiseRowsParams& p, void* stream) {
  const int64_t last_row = p.first_row + p.num_rows;
  const int64_t tiles = p.num_rows ? ceil_div(last_row, kTileRows) - p.first_row / kTileRows : 0;
  const Grid grid{tiles, p.matrix.num_groups()};
  return PYDSTP_LAUNCH(dequantise_rows_kernel<T>, grid, kTileThreads, 0, stream, p);
}

inline int launch_dequantise_rows(const DequantiseRowsParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_dequantise_rows_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_dequantise_rows_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
