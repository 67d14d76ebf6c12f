// The most likely token of each row of logits.
#pragma once

#include "common/dtype.h"

namespace pydstp {

class ThreadPool;

// Entries that one block looks at, so that a row of a vocabulary occupies many of them.
constexpr int64_t kArgmaxPart = 4096;

struct ArgmaxParams {
  const void* x;     // [num_rows, size], contiguous; size is in [1, 2^24)
  float* values;     // [num_rows, ceil(size / kArgmaxPart)], workspace
  int32_t* indices;  // [num_rows, ceil(size / kArgmaxPart)], workspace
  int32_t* out;      // [num_rows]: where the largest is, the lowest of equals; -1 if that is an
                     // infinity, or if the row holds a NaN
  int64_t num_rows, size;
  DType dtype;  // of x
};

void argmax_cpu(const ArgmaxParams& p, ThreadPool& pool);
void argmax_simt(const ArgmaxParams& p);
int argmax_cuda(const ArgmaxParams& p, void* stream);

}  // namespace pydstp
