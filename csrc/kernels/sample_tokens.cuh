// Three kernels, the first two in sample_bins.cuh. The third has one block per row: top-k, top-p
// and the draw each look for the first token, in order, at which a sum over all before it and
// itself reaches a goal. The bins tell which of them it is in, the tokens of that bin are listed,
// and each looks whether it is the one; of a long list the order is found bit by bit.
//
// Weights are whole numbers, so sums are exact and their order is free.
#pragma once

#include "kernels/kv_arena.cuh"
#include "kernels/philox.cuh"
#include "kernels/sample_bins.cuh"
#include "kernels/sample_tokens.h"

namespace pydstp {

// Larger for likelier tokens, of equals for the lower id; -0 equals 0. Never the largest there is.
PYDSTP_DEVICE uint64_t order_of(float value, int64_t id) {
  if (value == 0.0f) value = 0.0f;
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t key = bits & 0x80000000u ? ~bits : bits ^ 0x80000000u;
  return static_cast<uint64_t>(key) << kSampleIdBits | ((1ull << kSampleIdBits) - 1 - id);
}

PYDSTP_DEVICE float value_of(uint64_t order) {
  const uint32_t key = static_cast<uint32_t>(order >> kSampleIdBits);
  const uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// What the block of a row works with.
struct SampleDraw {
  SampleRow row;
  int64_t size;
  float best;
  const uint64_t* weights;  // [kSampleBins] shared: of all tokens up to the end of each bin
  const uint64_t* counts;   // [kSampleBins] shared, likewise
  uint64_t* num_listed;     // shared
  uint64_t* found;          // shared
  uint64_t* scratch;        // [num_warps] shared
  int bin = -1;             // whose tokens are listed
};

PYDSTP_DEVICE void list_token(const SampleDraw& d, float value, int64_t id) {
  const uint64_t place = atomic_add(d.num_listed, 1);
  d.row.orders[place] = order_of(value, id);
  d.row.weights[place] = weight_of(d.row, d.best, value);
}

PYDSTP_DEVICE void list_bin(SampleDraw& d, int bin) {
  if (d.bin == bin) return;  // the whole block
  d.bin = bin;
  if (thread_idx() == 0) *d.num_listed = 0;
  sync_threads();
  PYDSTP_UNROLL_BY(4)
  for (int64_t i = thread_idx() * 4; i < d.size; i += num_threads() * 4) {
    float values[4];
    const Bytes16 bytes = load_16(d.row.values + i);
    memcpy(values, bytes.words, sizeof(values));
    PYDSTP_UNROLL for (int j = 0; j < 4; ++j) {
      if (i + j < d.size && bin_of(d.best, values[j]) == bin) list_token(d, values[j], i + j);
    }
  }
  sync_threads();
}

// What a listed token adds to a sum.
PYDSTP_DEVICE uint64_t measure(const SampleDraw& d, uint64_t place, bool is_count) {
  return is_count ? 1 : d.row.weights[place];
}

// The sum over all bins before the listed one.
PYDSTP_DEVICE uint64_t sum_before(const SampleDraw& d, bool is_count) {
  const uint64_t* sums = is_count ? d.counts : d.weights;
  return d.bin == 0 ? 0 : sums[d.bin - 1];
}

// The same and over the tokens of the listed bin whose order is at least `cut`.
PYDSTP_DEVICE uint64_t sum_from(const SampleDraw& d, uint64_t cut, bool is_count) {
  uint64_t sum = 0;
  for (uint64_t i = thread_idx(); i < *d.num_listed; i += num_threads()) {
    if (d.row.orders[i] >= cut) sum += measure(d, i, is_count);
  }
  return block_sum(sum, d.scratch) + sum_before(d, is_count);
}

// find_token in a list of no more tokens than there are threads: each looks whether it is its own.
PYDSTP_DEVICE uint64_t find_in_short_list(const SampleDraw& d, uint64_t goal, bool is_count) {
  const uint64_t num_listed = *d.num_listed, own = thread_idx();
  if (own < num_listed) {
    uint64_t sum = sum_before(d, is_count);
    for (uint64_t i = 0; i < num_listed; ++i) {
      if (d.row.orders[i] >= d.row.orders[own]) sum += measure(d, i, is_count);
    }
    if (sum >= goal && sum - measure(d, own, is_count) < goal) *d.found = d.row.orders[own];
  }
  sync_threads();
  return *d.found;
}

// The order of the first token at which the sum reaches `goal`, which the sum over all does.
PYDSTP_DEVICE uint64_t find_token(SampleDraw& d, uint64_t goal, bool is_count) {
  const uint64_t* sums = is_count ? d.counts : d.weights;
  const int own = thread_idx();
  if (sums[own] >= goal && (own == 0 || sums[own - 1] < goal)) *d.found = own;
  sync_threads();
  const int bin = static_cast<int>(*d.found);
  sync_threads();
  list_bin(d, bin);
  if (*d.num_listed <= static_cast<uint64_t>(num_threads())) {
    return find_in_short_list(d, goal, is_count);
  }
  uint64_t order = 0;
  for (int64_t bit = 31 + kSampleIdBits; bit >= 0; --bit) {
    const uint64_t tried = order | 1ull << bit;
    if (sum_from(d, tried, is_count) >= goal) order = tried;
  }
  return order;
}

// The lowest order that min-p keeps.
PYDSTP_DEVICE uint64_t min_p_cut(const SampleDraw& d) {
  uint64_t dropped = 0;  // the highest order of a value that is not likely enough
  for (int64_t bit = 31 + kSampleIdBits; bit >= kSampleIdBits; --bit) {
    const uint64_t tried = dropped | 1ull << bit;
    const bool is_kept = tried > order_of(d.best, 0) ||
                         likeness(d.row, d.best, value_of(tried)) >= d.row.numbers[kMinP];
    if (!is_kept) dropped = tried;
  }
  return dropped + (1ull << kSampleIdBits);
}

// part, in [0, 1], of sum: a whole number, rounded up or down.
PYDSTP_DEVICE uint64_t part_of(uint64_t sum, double part, bool is_up) {
  const double product = part * static_cast<double>(sum);
  const uint64_t whole = static_cast<uint64_t>(is_up ? ceil(product) : floor(product));
  return whole < sum ? whole : sum;
}

PYDSTP_DEVICE int32_t draw_token(SampleDraw& d) {
  const double top_p = d.row.numbers[kTopP];
  const int64_t top_k = d.row.counts[kTopK];
  uint64_t cut = 0, total = d.weights[kSampleBins - 1];
  if (top_k > 0 && top_k < d.size) {
    cut = find_token(d, static_cast<uint64_t>(top_k), true);
    total = sum_from(d, cut, false);
  }
  if (top_p < 1.0) {
    const uint64_t goal = part_of(total, top_p, true);
    cut = find_token(d, goal > 0 ? goal : 1, false);
    total = sum_from(d, cut, false);
  }
  const uint64_t likely = d.row.numbers[kMinP] > 0.0 ? min_p_cut(d) : 0;
  if (likely > cut) {
    list_bin(d, bin_of(d.best, value_of(likely)));
    total = sum_from(d, likely, false);
  }
  const double uniform = keyed_uniform(d.row.counts[kDrawSeed], d.row.counts[kDrawRequest],
                                       d.row.counts[kNumNewTokens]);
  const uint64_t goal = part_of(total, uniform, false) + 1;
  const uint64_t order = find_token(d, goal < total ? goal : total, false);
  constexpr uint64_t kIds = (1ull << kSampleIdBits) - 1;
  return static_cast<int32_t>(kIds - (order & kIds));
}

PYDSTP_KERNEL sample_draw_kernel(SampleTokensParams p) {
  // weights [kSampleBins], counts [kSampleBins], scratch [num_warps], num_listed, found
  PYDSTP_SHARED(uint64_t, weights);
  uint64_t *counts = weights + kSampleBins, *scratch = counts + kSampleBins;
  const SampleRow row = sample_row(p, block_x());
  const int own = thread_idx();
  if (row.seq < 0) {  // the whole block
    if (own == 0 && p.seq_idx[block_x()] != -1) set_status(p.status, kBadSequence);
    if (own == 0) p.out[block_x()] = -1;
    return;
  }
  const BlockBest best = best_of_row(p, row, reinterpret_cast<float*>(scratch));
  int32_t token = finite_index(best);
  if (token >= 0 && row.numbers[kTemperature] != 0) {
    weights[own] = row.bin_weights[own];
    counts[own] = row.bin_counts[own];
    sync_threads();
    block_prefix(weights);
    block_prefix(counts);
    uint64_t* words = scratch + num_warps();
    SampleDraw draw{row, p.size, best.value, weights, counts, words, words + 1, scratch};
    token = draw_token(draw);
  }
  if (own == 0) p.out[block_x()] = token;
}

template <typename T>
int launch_sample_tokens_of(const SampleTokensParams& p, void* stream) {
  constexpr int64_t kWords = 2 * kSampleBins, kWarps = kSampleThreads / kWarpSize;
  constexpr int64_t kPartBytes = kWarps * sizeof(float);
  constexpr int64_t kBinBytes = kWords * sizeof(uint64_t) + kPartBytes;
  constexpr int64_t kDrawBytes = (kWords + kSampleBins / kWarpSize + 2) * sizeof(uint64_t);
  const Grid parts{ceil_div(p.size, kSamplePart), p.batch}, rows{p.batch};
  int status = PYDSTP_LAUNCH(sample_part_kernel<T>, parts, kSampleThreads, kPartBytes, stream, p);
  if (status != 0) return status;
  status = PYDSTP_LAUNCH(sample_bins_kernel, parts, kSampleThreads, kBinBytes, stream, p);
  if (status != 0) return status;
  return PYDSTP_LAUNCH(sample_draw_kernel, rows, kSampleBins, kDrawBytes, stream, p);
}

inline int launch_sample_tokens(const SampleTokensParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_sample_tokens_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_sample_tokens_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
