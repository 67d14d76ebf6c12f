// argmax: the rows in turn, each from its first entry on.
#include "kernels/argmax.h"

#include <cmath>

#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

template <typename T>
int32_t largest_entry(const T* row, int64_t size) {
  int64_t place = 0;
  float largest = to_float(row[0]);
  bool has_nan = std::isnan(largest);
  for (int64_t i = 1; i < size; ++i) {
    const float value = to_float(row[i]);
    has_nan = has_nan || std::isnan(value);
    if (value > largest) {
      largest = value;
      place = i;
    }
  }
  return has_nan || std::isinf(largest) ? -1 : static_cast<int32_t>(place);
}

template <typename T>
void find_rows(const ArgmaxParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.num_rows, 1, [&p](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      p.out[row] = largest_entry(static_cast<const T*>(p.x) + row * p.size, p.size);
    }
  });
}

}  // namespace

void find_largest(const ArgmaxParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return find_rows<float>(p, pool);
    case DType::kBFloat16:
      return find_rows<BFloat16>(p, pool);
  }
}

}  // namespace pydstp
