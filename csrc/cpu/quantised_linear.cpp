#include "common/thread_pool.h"
#include "cpu/quantised_panel.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr int64_t kSteps = kGroupColumns / kStepColumns;
constexpr int64_t kGroupBytes = kTileRows * kGroupColumns;
constexpr int64_t kBytesPerPart = 65536;  // less is not worth waking a thread
constexpr int64_t kGroupsPerPart = 256;
constexpr int64_t kFewTokens = 8;       // up to so many, what counts is how fast the codes are read
constexpr int64_t kAheadBytes = 32768;  // of codes that are on their way to the second level

// Up to kGroupColumns numbers of a token -> kGroupColumns codes; returns the scale.
template <typename T>
float quantise_group(const T* x, int64_t n, int8_t* codes, int32_t* offset) {
  typedef int8_t Lanes __attribute__((vector_size(kLanes)));
  F32 peaks = {}, zeros = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 values = load_first(x + i, n - i);
    peaks = larger(values < 0.0f ? -values : values, peaks);
    zeros += values * 0.0f;
  }
  const float largest = max_lanes(peaks), zero = sum_lanes(zeros);  // zero: or NaN
  const bool is_usual = largest >= kSmallestGroup && zero == 0.0f;
  const F32 inverse = splat(is_usual ? 127.0f / largest : 0.0f);
  I32 sums = {};
  memset(codes, 0, kGroupColumns);
  for (int64_t i = 0; i < n && is_usual; i += kLanes) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const F32 rounded = load_first(x + i, n - i) * inverse + kRound - kRound;
    const I32 whole = __builtin_convertvector(rounded, I32);
    sums += whole;
    const Lanes narrow = __builtin_convertvector(whole, Lanes);
    memcpy(codes + i, &narrow, sizeof(narrow));
  }
  *offset = 0;
  for (int i = 0; i < kLanes; ++i) *offset -= 128 * sums[i];
  return (is_usual ? largest / 127.0f : 0.0f) + zero;
}

template <typename T>
void quantise_tokens(const QuantisedLinearParams& p, ThreadPool& pool) {
  const int64_t groups = p.weight.num_groups(), in_features = p.weight.in_features;
  const auto quantise = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t token = k / groups, column = k % groups * kGroupColumns;
      const int64_t i = token_group(p, token, k % groups);
      const T* x = static_cast<const T*>(p.x) + token * in_features + column;
      p.x_scales[i] = quantise_group(x, min_of(kGroupColumns, in_features - column),
                                     p.x_codes + i * kGroupColumns, p.x_offsets + i);
    }
  };
  pool.parallel_for(0, p.num_tokens * groups, kGroupsPerPart, quantise);
}

// Where the codes, scales and offsets of a token's group are.
struct TokenGroup {
  const int8_t* codes;
  float scale;
  int32_t offset;
};

// sums += the products of a group, of one part of a tile and M tokens.
template <int M>
PYDSTP_INLINE void add_group(const uint8_t* codes, F32 scales, const TokenGroup (&tokens)[M],
                             F32 (&sums)[M][kParts], int part) {
  constexpr int kChains = 8 / M;  // as many sums as hide the latency of a product
  I32 products[M][kChains] = {};
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) products[m][0] = first_sum(tokens[m].offset);
  for (int64_t k = 0; k < kSteps; k += kChains) {
    PYDSTP_UNROLL for (int c = 0; c < kChains; ++c) {
      const uint8_t* place = codes + (k + c) * kTileRows * kStepColumns;
      const U32 block = load_bytes(place, kBytes);
      if constexpr (M == 8) __builtin_prefetch(place + kAheadBytes, 0, 2);
      PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
        uint32_t columns;
        memcpy(&columns, tokens[m].codes + (k + c) * kStepColumns, sizeof(columns));
        products[m][c] = add_centred_products(products[m][c], block, U32{} + columns);
      }
    }
  }
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
    for (int c = 1; c < kChains; ++c) products[m][0] += products[m][c];
    const F32 scale = scales * tokens[m].scale;
    sums[m][part] += __builtin_convertvector(products[m][0], F32) * scale;
  }
}

// M tokens from `token` on against a tile.
template <typename T, int M>
void multiply_tile(const QuantisedLinearParams& p, int64_t token, int64_t tile) {
  const int64_t groups = p.weight.num_groups(), out_features = p.weight.out_features;
  F32 sums[M][kParts] = {};
  for (int64_t g = 0; g < groups; ++g) {
    TokenGroup tokens[M];
    for (int m = 0; m < M; ++m) {
      const int64_t i = token_group(p, token + m, g);
      tokens[m] = {p.x_codes + i * kGroupColumns, p.x_scales[i], p.x_offsets[i]};
    }
    const int64_t place = tile * groups + g;
    for (int part = 0; part < kParts; ++part) {
      const F32 scales = load(p.weight.scales + place * kTileRows + part * kLanes);
      add_group<M>(p.weight.codes + place * kGroupBytes + part * kBytes, scales, tokens, sums,
                   part);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int part = 0; part < kParts; ++part) {
      const int64_t row = tile * kTileRows + part * kLanes;
      if (row >= out_features) break;
      T* out = static_cast<T*>(p.out) + (token + m) * out_features + row;
      store_first(out, sums[m][part], out_features - row);
    }
  }
}

// At most kFewTokens against a tile, in the largest blocks that have a kernel.
template <typename T>
void multiply_tokens(const QuantisedLinearParams& p, int64_t tile) {
  int64_t token = 0;
  if (p.num_tokens == 8) return multiply_tile<T, 8>(p, 0, tile);
  if (p.num_tokens - token >= 4) multiply_tile<T, 4>(p, token, tile), token += 4;
  if (p.num_tokens - token >= 2) multiply_tile<T, 2>(p, token, tile), token += 2;
  if (p.num_tokens - token >= 1) multiply_tile<T, 1>(p, token, tile);
}

template <typename T>
void multiply(const QuantisedLinearParams& p, ThreadPool& pool) {
  quantise_tokens<T>(p, pool);
  if (p.num_tokens > kFewTokens) return multiply_panels<T>(p, pool);
  const int64_t grain = ceil_div(kBytesPerPart, max_of(1, p.weight.num_groups() * kGroupBytes));
  pool.parallel_for(0, p.weight.num_tiles(), grain, [&p](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) multiply_tokens<T>(p, tile);
  });
}

}  // namespace

void quantised_linear(const QuantisedLinearParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return multiply<float>(p, pool);
    case DType::kBFloat16:
      return multiply<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
