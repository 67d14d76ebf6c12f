// The next token of each row of logits: penalties, then the most likely one or a keyed draw.
#pragma once

#include "common/dtype.h"
#include "common/math.h"
#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// What a sequence asks for. pydstp/ops/sampling.py has the same numbers.
enum SampleNumber { kTemperature, kTopP, kMinP, kRepetitionPenalty, kPresencePenalty };
enum SampleCount { kTopK, kMinNewTokens, kDrawSeed, kDrawRequest, kNumNewTokens };
enum SampleMark : uint8_t { kInPrompt = 1, kInAnswer = 2, kEndToken = 4 };
constexpr int64_t kSampleNumbers = 5, kSampleCounts = 5;

constexpr int64_t kSampleIdBits = 20;  // of a token id
constexpr int64_t kSamplePart = 4096;  // logits that one block looks at first
constexpr int64_t kSampleBins = 512;   // that logits are counted in, by their distance to the best

struct SampleTokensParams {
  const void* logits;      // [batch, size], contiguous
  const double* numbers;   // [max_batch, kSampleNumbers] by sequence
  const int64_t* counts;   // [max_batch, kSampleCounts]
  const uint8_t* marks;    // [max_batch, size] bits of SampleMark
  const int32_t* seq_idx;  // [batch]; -1: the row is skipped
  void* workspace;         // [batch, sample_row_bytes(size)], at a multiple of 16
  int32_t* out;            // [batch]; -1 if the row is skipped or its largest is not finite
  int32_t* status;         // [1] or nullptr
  int64_t batch, max_batch;
  int64_t size;  // in [1, 2^kSampleIdBits]
  DType dtype;   // of logits
};

// Bytes of workspace per row: for each logit an fp32 number, an order and a weight of 8 bytes each;
// then two words per bin, and the best of each part.
inline PYDSTP_HOST_DEVICE int64_t sample_row_bytes(int64_t size) {
  const int64_t padded = ceil_div(size, 4) * 4, parts = ceil_div(size, 2 * kSamplePart) * 2;
  return padded * 20 + kSampleBins * 16 + parts * 8;
}

// A draw is the inverse of the distribution function at a number in [0, 1): tokens in the order of
// their logits, equals by id, after top-k, top-p and min-p in this order. The number is the first
// double of Philox4x64-10 with key (seed, request) and counter (new tokens so far, 0, 0, 0).
void sample_tokens_cpu(const SampleTokensParams& p, ThreadPool& pool);
void sample_tokens_simt(const SampleTokensParams& p);
int sample_tokens_cuda(const SampleTokensParams& p, void* stream);

}  // namespace pydstp
