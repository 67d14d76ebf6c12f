// Products of many tokens in 8 bits with a matrix in 8 bits.
//
// A panel of tokens meets a block of outputs group by group: the codes of a group, of both, stay in
// the first-level cache, and so do the panel's sums, while the block stays in the second level for
// the panels that follow. Each sum takes its groups in order, so neither panels nor blocks show.
#pragma once

#include "common/thread_pool.h"
#include "cpu/int_dot.h"
#include "kernels/quantised.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int kParts = kTileRows / kLanes;  // vectors that hold one number of each row of a tile
constexpr int64_t kPanelTokens = 48;
constexpr int64_t kNextCodes = 2 * kTileRows * kGroupColumns;  // on their way: two groups later
#if defined(PYDSTP_TIER_AVX512BF16) || defined(PYDSTP_TIER_AVX512BF16_EMULATED)
constexpr int kBlockTokens = 6, kBlockVectors = 4;  // 24 sums of 32 registers
#elif defined(PYDSTP_TIER_AVX2)
constexpr int kBlockTokens = 4, kBlockVectors = 2;  // 8 of 16
#else
constexpr int kBlockTokens = 2, kBlockVectors = 2;
#endif
using PanelSums = F32[kPanelTokens][kBlockVectors];

// Where a group of some tokens is: [num_groups, num_tokens] lie together.
static inline int64_t token_group(const QuantisedLinearParams& p, int64_t token, int64_t group) {
  return group * p.num_tokens + token;
}

// products[m][w] = a group of token m times a group of the outputs of vector w, exactly. x: the
// codes of M tokens, one group each.
template <int M, int W>
PYDSTP_INLINE void multiply_group(const uint8_t* const (&codes)[W], const int8_t* x,
                                  const int32_t* offsets, I32 (&products)[M][W]) {
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) products[m][w] = first_sum(offsets[m]);
  }
  for (int64_t k = 0; k < kGroupColumns; k += kStepColumns) {
    U32 columns[W];
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      columns[w] = load_bytes(codes[w] + k * kTileRows, kBytes);
      if constexpr (M == kBlockTokens) {
        __builtin_prefetch(codes[w] + k * kTileRows + kNextCodes, 0, 2);
      }
    }
    PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
      uint32_t four;
      memcpy(&four, x + m * kGroupColumns + k, sizeof(four));
      const U32 q = U32{} + four;
      PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
        products[m][w] = add_centred_products(products[m][w], columns[w], q);
      }
    }
  }
}

// sums += the products of a group of M tokens, `token` the first, with W vectors of outputs.
template <int M, int W>
static void add_panel_group(const QuantisedLinearParams& p, int64_t group, int64_t token,
                            int64_t vector, F32 (*sums)[kBlockVectors]) {
  const int64_t first = token_group(p, token, group);
  const uint8_t* codes[W];
  F32 scales[W];
  PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
    const int64_t tile = (vector + w) / kParts, part = (vector + w) % kParts;
    const int64_t place = tile * p.weight.num_groups() + group;
    codes[w] = p.weight.codes + place * kTileRows * kGroupColumns + part * kBytes;
    scales[w] = load(p.weight.scales + place * kTileRows + part * kLanes);
  }
  I32 products[M][W];
  multiply_group(codes, p.x_codes + first * kGroupColumns, p.x_offsets + first, products);
  PYDSTP_UNROLL for (int m = 0; m < M; ++m) {
    PYDSTP_UNROLL for (int w = 0; w < W; ++w) {
      const F32 scale = scales[w] * p.x_scales[first + m];
      sums[m][w] += __builtin_convertvector(products[m][w], F32) * scale;
    }
  }
}

// A group of tokens [token, end), in the largest blocks that have a kernel.
template <int M, int W>
static inline void add_tokens(const QuantisedLinearParams& p, int64_t group, int64_t token,
                              int64_t end, int64_t vector, F32 (*sums)[kBlockVectors]) {
  for (; token + M <= end; token += M, sums += M) {
    add_panel_group<M, W>(p, group, token, vector, sums);
  }
  if constexpr (M > 1) {
    add_tokens<(M > 4 ? 4 : M / 2), W>(p, group, token, end, vector, sums);
  }
}

// Tokens [token, end), at most kPanelTokens, against W vectors of outputs.
template <typename T, int W>
static void multiply_panel(const QuantisedLinearParams& p, int64_t token, int64_t end,
                           int64_t vector) {
  PanelSums sums;
  for (int64_t m = 0; m < end - token; ++m) {
    for (int w = 0; w < W; ++w) sums[m][w] = F32{};
  }
  for (int64_t g = 0; g < p.weight.num_groups(); ++g) {
    add_tokens<kBlockTokens, W>(p, g, token, end, vector, sums);
  }
  const int64_t out_features = p.weight.out_features;
  for (int64_t m = 0; m < end - token; ++m) {
    for (int w = 0; w < W; ++w) {
      const int64_t row = (vector + w) * kLanes;
      if (row >= out_features) break;
      T* out = static_cast<T*>(p.out) + (token + m) * out_features + row;
      store_first(out, sums[m][w], out_features - row);
    }
  }
}

// One panel of tokens and one block of outputs.
template <typename T>
static void multiply_block(const QuantisedLinearParams& p, int64_t panel, int64_t block) {
  const int64_t token = panel * kPanelTokens, end = min_of(p.num_tokens, token + kPanelTokens);
  const int64_t num_vectors = p.weight.num_tiles() * kParts, vector = block * kBlockVectors;
  if (vector + kBlockVectors <= num_vectors) {
    return multiply_panel<T, kBlockVectors>(p, token, end, vector);
  }
  for (int64_t v = vector; v < num_vectors; ++v) multiply_panel<T, 1>(p, token, end, v);
}

// All tokens; panels of a block follow each other, on one thread if there are many blocks.
template <typename T>
static void multiply_panels(const QuantisedLinearParams& p, ThreadPool& pool) {
  const int64_t panels = ceil_div(p.num_tokens, kPanelTokens);
  const int64_t blocks = ceil_div(p.weight.num_tiles() * kParts, kBlockVectors);
  pool.parallel_for(0, blocks * panels, 1, [&p, panels](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) multiply_block<T>(p, i % panels, i / panels);
  });
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
