// Two kernels. The first quantises the tokens, a warp per (token, group of columns). The second has
// one block per (tile of weight rows, block of M tokens): half a warp takes one group of the tile,
// a lane one of its rows, and what the groups give is added up in their order at the end of a run
// of groups, so that an output has the bits that it has on the CPU.
#pragma once

#include "kernels/quantised.cuh"

namespace pydstp {

constexpr int kProductThreads = 256;
constexpr int64_t kRunGroups = 32;  // whose products a block holds before they are added up

template <typename T>
PYDSTP_KERNEL quantise_tokens_kernel(QuantisedLinearParams p) {
  const int64_t groups = p.weight.num_groups(), token = block_y();
  const int64_t group = block_x() * num_warps() + warp_idx();
  if (group >= groups) return;  // the whole warp
  float x[kStepColumns];
  const T* row = static_cast<const T*>(p.x) + token * p.weight.in_features;
  load_columns(row, group, p.weight.in_features, x);
  const float largest = largest_of_group(x);
  const float zero = warp_sum(x[0] * 0.0f + x[1] * 0.0f + x[2] * 0.0f + x[3] * 0.0f);  // or NaN
  const bool is_usual = largest >= kSmallestGroup && zero == 0.0f;
  const float inverse = is_usual ? 127.0f / largest : 0.0f;
  PYDSTP_UNROLL for (int j = 0; j < kStepColumns; ++j) x[j] = is_usual ? x[j] * inverse : 0.0f;
  const int64_t place = token * groups + group;
  reinterpret_cast<uint32_t*>(p.x_codes + place * kGroupColumns)[lane_idx()] = round_to_bytes(x, 0);
  if (lane_idx() == 0) p.x_scales[place] = (is_usual ? largest / 127.0f : 0.0f) + zero;
}

// The products of one group of a lane's row with M tokens, times both scales. terms: [M,
// kTileRows].
template <int M>
PYDSTP_DEVICE void multiply_group(const QuantisedLinearParams& p, int64_t token, int64_t group,
                                  float* terms) {
  const int64_t groups = p.weight.num_groups(), place = block_x() * groups + group;
  const int64_t row = lane_idx() % kTileRows, first = token * groups + group;
  const uint8_t* codes = p.weight.codes + place * kGroupBytes + row * kStepColumns;
  int32_t products[M] = {};
  PYDSTP_UNROLL_BY(4)
  for (int64_t column = 0; column < kGroupColumns; column += 4 * kStepColumns) {
    uint32_t weights[4];
    PYDSTP_UNROLL for (int k = 0; k < 4; ++k) {
      // 128 less, as int8
      weights[k] = stream_4(codes + (column + k * kStepColumns) * kTileRows) ^ 0x80808080u;
    }
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
      const int64_t x = (first + m * groups) * kGroupColumns + column;
      const Bytes16 columns = load_16(p.x_codes + x);
      PYDSTP_UNROLL for (int k = 0; k < 4; ++k) {
        products[m] = dot_4(weights[k], columns.words[k], products[m]);
      }
    }
  }
  const float scale = to_float(p.weight.scales[place * kTileRows + row]);
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
    const float both = scale * p.x_scales[first + m * groups];
    terms[m * kTileRows + row] = static_cast<float>(products[m]) * both;
  }
}

// A tile with M tokens from `token` on. terms: [kRunGroups, M, kTileRows] in shared memory.
template <typename T, int M>
PYDSTP_DEVICE void multiply_tile(const QuantisedLinearParams& p, int64_t token, float* terms) {
  constexpr int64_t kTerms = M * kTileRows;
  const int64_t groups = p.weight.num_groups(), thread = thread_idx();
  float sum = 0.0f;  // of output (thread / kTileRows, thread % kTileRows), where that is one
  for (int64_t first = 0; first < groups; first += kRunGroups) {
    const int64_t n = min_of(kRunGroups, groups - first);
    for (int64_t g = thread / kTileRows; g < n; g += kProductThreads / kTileRows) {
      multiply_group<M>(p, token, first + g, terms + g * kTerms);
    }
    sync_threads();
    for (int64_t g = 0; g < n && thread < kTerms; ++g) sum += terms[g * kTerms + thread];
    sync_threads();
  }
  const int64_t row = block_x() * kTileRows + thread % kTileRows;
  if (thread >= kTerms || row >= p.weight.out_features) return;
  const int64_t place = (token + thread / kTileRows) * p.weight.out_features + row;
  assign(static_cast<T*>(p.out)[place], sum);
}

template <typename T, int M>
PYDSTP_KERNEL quantised_linear_kernel(QuantisedLinearParams p) {
  PYDSTP_SHARED(float, terms);
  multiply_tile<T, M>(p, block_y() * M, terms);
}

// The first blocks * M tokens of p, which then begins behind them.
template <typename T, int M>
int launch_quantised_tokens(QuantisedLinearParams& p, void* stream) {
  const int64_t blocks = p.num_tokens / M, groups = p.weight.num_groups();
  constexpr int64_t kBytes = kRunGroups * M * kTileRows * sizeof(float);
  const Grid grid{p.weight.num_tiles(), blocks};
  const int status =
      PYDSTP_LAUNCH((quantised_linear_kernel<T, M>), grid, kProductThreads, kBytes, stream, p);
  p.x_codes += blocks * M * groups * kGroupColumns;
  p.x_scales += blocks * M * groups;
  p.out = static_cast<T*>(p.out) + blocks * M * p.weight.out_features;
  p.num_tokens -= blocks * M;
  return status;
}

template <typename T>
int launch_quantise_tokens(const QuantisedLinearParams& p, void* stream) {
  const Grid grid{ceil_div(p.weight.num_groups(), kRowThreads / kWarpSize), p.num_tokens};
  return PYDSTP_LAUNCH(quantise_tokens_kernel<T>, grid, kRowThreads, 0, stream, p);
}

template <typename T>
int launch_quantised_linear_of(QuantisedLinearParams p, void* stream) {
  int status = launch_quantise_tokens<T>(p, stream);
  if (status == 0) status = launch_quantised_tokens<T, 8>(p, stream);
  if (status == 0) status = launch_quantised_tokens<T, 4>(p, stream);
  if (status == 0) status = launch_quantised_tokens<T, 2>(p, stream);
  return status != 0 ? status : launch_quantised_tokens<T, 1>(p, stream);
}

inline int launch_quantised_linear(const QuantisedLinearParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_quantised_linear_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_quantised_linear_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
