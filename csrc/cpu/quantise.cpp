// quantise_rows and dequantise_rows. Every tier gives the same bits.
#include "common/thread_pool.h"
#include "cpu/tier.h"
#include "cpu/vec.h"
#include "kernels/quantised.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr int64_t kElementsPerPart = 65536;
constexpr int64_t kGroupBytes = kTileRows * kGroupColumns;
typedef uint8_t Lanes __attribute__((vector_size(kLanes)));

// Up to kGroupColumns numbers -> as many codes, filled up; returns the scale.
template <typename T>
BFloat16 quantise_group(const T* x, int64_t n, uint8_t* codes) {
  F32 peaks = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 values = load_first(x + i, n - i);
    peaks = larger(values < 0.0f ? -values : values, peaks);
  }
  const float largest = max_lanes(peaks);
  BFloat16 scale = {0};
  memset(codes, 128, kGroupColumns);
  if (!(largest >= kSmallestGroup)) return scale;
  assign(scale, largest / 127.0f);
  const F32 divisor = splat(to_float(scale));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 rounded = load_first(x + i, n - i) / divisor + kRound - kRound;
    const Lanes narrow =
        __builtin_convertvector(__builtin_convertvector(rounded, I32) + 128, Lanes);
    memcpy(codes + i, &narrow, sizeof(narrow));
  }
  return scale;
}

template <typename T>
void quantise_row(const QuantiseRowsParams& p, int64_t i) {
  const QuantisedMatrix& m = p.matrix;
  const T* x = static_cast<const T*>(p.x) + i * m.in_features;
  const int64_t row = p.first_row + i, lane = row % kTileRows, groups = m.num_groups();
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t place = row / kTileRows * groups + g, column = g * kGroupColumns;
    uint8_t codes[kGroupColumns];
    m.scales[place * kTileRows + lane] =
        quantise_group(x + column, min_of(kGroupColumns, m.in_features - column), codes);
    uint8_t* out = m.codes + place * kGroupBytes + lane * kStepColumns;
    for (int64_t k = 0; k < kGroupColumns; k += kStepColumns) {
      memcpy(out + k * kTileRows, codes + k, kStepColumns);
    }
  }
}

template <typename T>
void quantise(const QuantiseRowsParams& p, ThreadPool& pool) {
  const int64_t grain = ceil_div(kElementsPerPart, max_of(1, p.matrix.in_features));
  pool.parallel_for(0, p.num_rows, grain, [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) quantise_row<T>(p, i);
  });
}

// One group of rows [begin, end) of a tile; out is where row `begin` starts.
template <typename T>
void dequantise_group(const QuantisedMatrix& m, int64_t tile, int64_t g, int64_t begin, int64_t end,
                      T* out) {
  const int64_t place = tile * m.num_groups() + g, column = g * kGroupColumns;
  const int64_t n = min_of(kGroupColumns, m.in_features - column);
  uint8_t rows[kTileRows][kGroupColumns];
  const uint8_t* codes = m.codes + place * kGroupBytes;
  for (int64_t k = 0; k < kGroupColumns; k += kStepColumns) {
    for (int64_t r = 0; r < kTileRows; ++r, codes += kStepColumns) {
      memcpy(rows[r] + k, codes, kStepColumns);
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    const F32 scale = splat(to_float(m.scales[place * kTileRows + r]));
    T* row = out + (r - begin) * m.in_features + column;
    for (int64_t i = 0; i < n; i += kLanes) {
      Lanes lanes;
      memcpy(&lanes, rows[r] + i, sizeof(lanes));
      const I32 wide = __builtin_convertvector(lanes, I32) - 128;
      store_first(row + i, __builtin_convertvector(wide, F32) * scale, n - i);
    }
  }
}

template <typename T>
void dequantise_tiles(const DequantiseRowsParams& p, int64_t first_tile, int64_t last_tile) {
  const int64_t last_row = p.first_row + p.num_rows;
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t top = tile * kTileRows, begin = max_of(p.first_row - top, 0);
    const int64_t end = min_of(last_row - top, kTileRows);
    T* out = static_cast<T*>(p.out) + (top + begin - p.first_row) * p.matrix.in_features;
    for (int64_t g = 0; g < p.matrix.num_groups(); ++g) {
      dequantise_group(p.matrix, tile, g, begin, end, out);
    }
  }
}

template <typename T>
void dequantise(const DequantiseRowsParams& p, ThreadPool& pool) {
  const int64_t grain = ceil_div(kElementsPerPart, max_of(1, kTileRows * p.matrix.in_features));
  const int64_t first = p.first_row / kTileRows;
  const int64_t last = p.num_rows ? ceil_div(p.first_row + p.num_rows, kTileRows) : first;
  pool.parallel_for(first, last, grain,
                    [&p](int64_t begin, int64_t end) { dequantise_tiles<T>(p, begin, end); });
}

}  // namespace

void quantise_rows(const QuantiseRowsParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return quantise<float>(p, pool);
    case DType::kBFloat16:
      return quantise<BFloat16>(p, pool);
  }
}

void dequantise_rows(const DequantiseRowsParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return dequantise<float>(p, pool);
    case DType::kBFloat16:
      return dequantise<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
