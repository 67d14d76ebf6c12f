// sample_tokens: rows in turn; tokens are sorted, and sums are those of pydstp/sampling.py.
#include "kernels/sample_tokens.h"

#include <algorithm>
#include <cmath>

#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

// One row, and what its sequence asks for.
struct Row {
  const double* numbers;
  const int64_t* counts;
  const uint8_t* marks;
  double* probabilities;  // [size] of the best tokens, best first
  float* values;          // [size] logits after penalties
  int32_t* ids;           // [size] the best tokens first
  int64_t size;
};

template <typename T>
void penalise(const Row& row, const T* logits) {
  const float repetition = static_cast<float>(row.numbers[kRepetitionPenalty]);
  const float presence = static_cast<float>(row.numbers[kPresencePenalty]);
  const bool is_early = row.counts[kNumNewTokens] < row.counts[kMinNewTokens];
  for (int64_t i = 0; i < row.size; ++i) {
    float value = to_float(logits[i]);
    const uint8_t mark = row.marks[i];
    if (mark & (kInPrompt | kInAnswer)) value = value > 0 ? value / repetition : value * repetition;
    if (mark & kInAnswer) value -= presence;
    row.values[i] = is_early && (mark & kEndToken) ? -INFINITY : value;
  }
}

// The place of the largest number; -1 if it is an infinity or there is a NaN.
int32_t find_best(const Row& row) {
  const auto is_nan = [](float value) { return std::isnan(value); };
  if (std::any_of(row.values, row.values + row.size, is_nan)) return -1;
  const float* best = std::max_element(row.values, row.values + row.size);
  return std::isinf(*best) ? -1 : static_cast<int32_t>(best - row.values);
}

// Puts the `count` best tokens first, in order.
void sort_best(const Row& row, int64_t count) {
  const auto is_better = [&row](int32_t a, int32_t b) {
    return row.values[a] > row.values[b] || (row.values[a] == row.values[b] && a < b);
  };
  for (int64_t i = 0; i < row.size; ++i) row.ids[i] = static_cast<int32_t>(i);
  if (count < row.size) std::nth_element(row.ids, row.ids + count, row.ids + row.size, is_better);
  std::sort(row.ids, row.ids + count, is_better);
}

// How many of the `count` best tokens survive top-p and min-p.
int64_t count_kept(const Row& row, int64_t count) {
  double* probabilities = row.probabilities;
  const double best = row.values[row.ids[0]], temperature = row.numbers[kTemperature];
  double total = 0, reached = 0;
  for (int64_t i = 0; i < count; ++i) {
    probabilities[i] = std::exp((row.values[row.ids[i]] - best) / temperature);
    total += probabilities[i];
  }
  for (int64_t i = 0; i < count; ++i) probabilities[i] /= total;
  int64_t kept = 0;
  for (; kept < count; ++kept) {
    if (row.numbers[kTopP] < 1.0 && reached >= row.numbers[kTopP]) break;
    if (probabilities[kept] < row.numbers[kMinP] * probabilities[0]) break;
    reached += probabilities[kept];
  }
  return kept;
}

// The first double of NumPy's Philox4x64-10, which counts up before it draws.
double keyed_uniform(const int64_t* counts) {
  using Wide = unsigned __int128;
  constexpr Wide kFirst = 0xD2E7470EE14C6C93ull, kSecond = 0xCA5A826395121157ull;
  uint64_t a = static_cast<uint64_t>(counts[kNumNewTokens]) + 1, b = 0, c = 0, d = 0;
  uint64_t seed = static_cast<uint64_t>(counts[kDrawSeed]);
  uint64_t request = static_cast<uint64_t>(counts[kDrawRequest]);
  for (int round = 0; round < 10; ++round) {
    const Wide first = kFirst * a, second = kSecond * c;
    a = static_cast<uint64_t>(second >> 64) ^ b ^ seed;
    c = static_cast<uint64_t>(first >> 64) ^ d ^ request;
    b = static_cast<uint64_t>(second);
    d = static_cast<uint64_t>(first);
    seed += 0x9E3779B97F4A7C15ull;
    request += 0xBB67AE8584CAA73Bull;
  }
  return std::ldexp(static_cast<double>(a >> 11), -53);
}

int32_t draw(const Row& row) {
  const int64_t top_k = row.counts[kTopK];
  const int64_t count = top_k > 0 ? min_of(top_k, row.size) : row.size;
  sort_best(row, count);
  const int64_t kept = count_kept(row, count);
  double total = 0, reached = 0;
  for (int64_t i = 0; i < kept; ++i) total += row.probabilities[i];
  const double target = keyed_uniform(row.counts) * total;
  for (int64_t i = 0; i < kept; ++i) {
    reached += row.probabilities[i];
    if (reached > target) return row.ids[i];
  }
  return row.ids[kept - 1];
}

template <typename T>
int32_t draw_row(const SampleTokensParams& p, int64_t row_idx) {
  const int64_t seq = p.seq_idx[row_idx];
  if (!is_index(seq, p.max_batch)) {
    if (p.status && seq != -1) __atomic_fetch_or(p.status, kBadSequence, __ATOMIC_RELAXED);
    return -1;
  }
  char* room = static_cast<char*>(p.workspace) + row_idx * sample_row_bytes(p.size);
  double* probabilities = reinterpret_cast<double*>(room);
  float* values = reinterpret_cast<float*>(probabilities + p.size);
  const Row row = {p.numbers + seq * kSampleNumbers,
                   p.counts + seq * kSampleCounts,
                   p.marks + seq * p.size,
                   probabilities,
                   values,
                   reinterpret_cast<int32_t*>(values + p.size),
                   p.size};
  penalise(row, static_cast<const T*>(p.logits) + row_idx * p.size);
  const int32_t best = find_best(row);
  return best < 0 || row.numbers[kTemperature] == 0 ? best : draw(row);
}

template <typename T>
void draw_rows(const SampleTokensParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.batch, 1, [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.out[i] = draw_row<T>(p, i);
  });
}

}  // namespace

void draw_tokens(const SampleTokensParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return draw_rows<float>(p, pool);
    case DType::kBFloat16:
      return draw_rows<BFloat16>(p, pool);
  }
}

}  // namespace pydstp
