#include "kernels/linear.h"

#include "common/thread_pool.h"
#include "cpu/dot.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr int64_t kTileRows = 64;         // weight rows that stay in cache between blocks of tokens
constexpr int64_t kBytesPerPart = 65536;  // less is not worth waking a thread

// Weight rows [begin, end) against M tokens from `token` on.
template <typename T, int M>
void multiply_rows(const LinearParams& p, int64_t token, int64_t begin, int64_t end) {
  constexpr int R = kAccumulators / M > 8 ? 8 : kAccumulators / M;
  const T* tokens[M];
  for (int m = 0; m < M; ++m) tokens[m] = static_cast<const T*>(p.x) + (token + m) * p.in_features;
  for (int64_t row = begin; row < end; row += R) {
    const T* rows[R];
    for (int r = 0; r < R; ++r) {  // the last block repeats its last row instead of reading on
      rows[r] = static_cast<const T*>(p.weight) + min_of(row + r, end - 1) * p.in_features;
    }
    float sums[M][R];
    dot_rows<T, M, R>(tokens, rows, p.in_features, sums);
    for (int r = 0; r < R && row + r < end; ++r) {
      const float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[row + r]) : 0.0f;
      T* out = static_cast<T*>(p.out) + token * p.out_features + row + r;
      for (int m = 0; m < M; ++m) assign(out[m * p.out_features], sums[m][r] + bias);
    }
  }
}

// All tokens against weight rows [begin, end), in the largest blocks that have a kernel.
template <typename T>
void multiply_tile(const LinearParams& p, int64_t begin, int64_t end) {
  int64_t token = 0;
  for (; token + 8 <= p.num_tokens; token += 8) multiply_rows<T, 8>(p, token, begin, end);
  if (p.num_tokens - token >= 4) multiply_rows<T, 4>(p, token, begin, end), token += 4;
  if (p.num_tokens - token >= 2) multiply_rows<T, 2>(p, token, begin, end), token += 2;
  if (p.num_tokens - token >= 1) multiply_rows<T, 1>(p, token, begin, end);
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
