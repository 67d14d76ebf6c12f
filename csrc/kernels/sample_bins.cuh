// The first two kernels of sample_tokens. Both have one block per (part of kSamplePart logits,
// row): one applies the penalties and leaves the best of the part, the other counts the part's
// tokens and adds up their weights by bins of the distance to the best of the row.
#pragma once

#include "kernels/block_best.cuh"
#include "kernels/sample_tokens.h"

namespace pydstp {

constexpr int kSampleThreads = 256;         // of the first two kernels; the third has one per bin
constexpr float kBinsPerUnit = 16.0f;       // of a logit
constexpr double kFullWeight = 1ull << 43;  // of the best token: 2^20 of them fit 64 bits

// What a sequence asks for, and its part of the workspace.
struct SampleRow {
  int64_t seq = -1;  // or the row is skipped
  const double* numbers;
  const int64_t* counts;
  float* values;          // [size] logits after penalties
  uint64_t* orders;       // [size] of the listed tokens
  uint64_t* weights;      // [size] of the listed tokens
  uint64_t* bin_weights;  // [kSampleBins]
  uint64_t* bin_counts;   // [kSampleBins]
  float* best_values;     // [parts]
  int32_t* best_indices;  // [parts]
};

PYDSTP_DEVICE SampleRow sample_row(const SampleTokensParams& p, int64_t row_idx) {
  SampleRow row;
  const int64_t seq = p.seq_idx[row_idx], padded = ceil_div(p.size, 4) * 4;
  if (!is_index(seq, p.max_batch)) return row;
  row.seq = seq;
  row.numbers = p.numbers + seq * kSampleNumbers;
  row.counts = p.counts + seq * kSampleCounts;
  char* room = static_cast<char*>(p.workspace) + row_idx * sample_row_bytes(p.size);
  row.bin_weights = reinterpret_cast<uint64_t*>(room);
  row.bin_counts = row.bin_weights + kSampleBins;
  row.orders = row.bin_counts + kSampleBins;
  row.weights = row.orders + padded;
  row.values = reinterpret_cast<float*>(row.weights + padded);
  row.best_values = row.values + padded;
  row.best_indices = reinterpret_cast<int32_t*>(row.best_values + ceil_div(p.size, kSamplePart));
  return row;
}

PYDSTP_DEVICE float penalised(const SampleRow& row, float logit, uint8_t mark) {
  const float repetition = static_cast<float>(row.numbers[kRepetitionPenalty]);
  if (mark & (kInPrompt | kInAnswer)) logit = logit > 0 ? logit / repetition : logit * repetition;
  if (mark & kInAnswer) logit -= static_cast<float>(row.numbers[kPresencePenalty]);
  const bool is_early = row.counts[kNumNewTokens] < row.counts[kMinNewTokens];
  return is_early && (mark & kEndToken) ? -INFINITY : logit;
}

template <typename T>
PYDSTP_KERNEL sample_part_kernel(SampleTokensParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const SampleRow row = sample_row(p, block_y());
  if (row.seq < 0) return;  // the whole block
  const T* logits = static_cast<const T*>(p.logits) + block_y() * p.size;
  const uint8_t* marks = p.marks + row.seq * p.size;
  const int64_t first = block_x() * kSamplePart, end = min_of(first + kSamplePart, p.size);
  BlockBest own;
  for (int64_t i = first + thread_idx(); i < end; i += num_threads()) {
    row.values[i] = penalised(row, to_float(logits[i]), marks[i]);
    consider(own, row.values[i], i);
  }
  for (int64_t i = thread_idx(); i < kSampleBins && block_x() == 0; i += num_threads()) {
    row.bin_weights[i] = 0;
    row.bin_counts[i] = 0;
  }
  const BlockBest best = best_of_block(own, scratch);
  if (thread_idx() != 0) return;
  leave_best(best, row.best_values + block_x(), row.best_indices + block_x());
}

PYDSTP_DEVICE BlockBest best_of_row(const SampleTokensParams& p, const SampleRow& row,
                                    float* scratch) {
  return best_of_parts(row.best_values, row.best_indices, ceil_div(p.size, kSamplePart), scratch);
}

// The farther from the best, the higher; the last one holds all that is far away.
PYDSTP_DEVICE int bin_of(float best, float value) {
  return static_cast<int>(fminf((best - value) * kBinsPerUnit, kSampleBins - 1));
}

// exp of the distance to the best over the temperature, in [0, 1].
PYDSTP_DEVICE double likeness(const SampleRow& row, float best, float value) {
  return exp((static_cast<double>(value) - best) / row.numbers[kTemperature]);
}

PYDSTP_DEVICE uint64_t weight_of(const SampleRow& row, float best, float value) {
  return static_cast<uint64_t>(likeness(row, best, value) * kFullWeight + 0.5);
}

PYDSTP_KERNEL sample_bins_kernel(SampleTokensParams p) {
  PYDSTP_SHARED(uint64_t, weights);  // [kSampleBins], then counts [kSampleBins], [num_warps] floats
  uint64_t* counts = weights + kSampleBins;
  const SampleRow row = sample_row(p, block_y());
  if (row.seq < 0 || row.numbers[kTemperature] == 0) return;  // the whole block, as below
  const BlockBest best = best_of_row(p, row, reinterpret_cast<float*>(counts + kSampleBins));
  if (finite_index(best) < 0) return;
  for (int64_t i = thread_idx(); i < 2 * kSampleBins; i += num_threads()) weights[i] = 0;
  sync_threads();
  const int64_t first = block_x() * kSamplePart, end = min_of(first + kSamplePart, p.size);
  for (int64_t i = first + thread_idx(); i < end; i += num_threads()) {
    const int bin = bin_of(best.value, row.values[i]);
    atomic_add(weights + bin, weight_of(row, best.value, row.values[i]));
    atomic_add(counts + bin, 1);
  }
  sync_threads();
  for (int64_t i = thread_idx(); i < kSampleBins; i += num_threads()) {
    if (counts[i] == 0) continue;
    atomic_add(row.bin_weights + i, weights[i]);
    atomic_add(row.bin_counts + i, counts[i]);
  }
}

}  // namespace pydstp
