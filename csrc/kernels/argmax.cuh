// Two kernels. The first has one block per (part of kArgmaxPart entries, row) and leaves the
// largest of its part and where it is; the second has one block per row and does the same with what
// the first left. A NaN in a part becomes the part's largest.
#pragma once

#include "common/math.h"
#include "kernels/argmax.h"
#include "kernels/block_best.cuh"

namespace pydstp {

constexpr int kArgmaxThreads = 256;

template <typename T>
PYDSTP_KERNEL argmax_part_kernel(ArgmaxParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const int64_t part = block_x(), row = block_y(), first = part * kArgmaxPart;
  const T* x = static_cast<const T*>(p.x) + row * p.size;
  const int64_t end = min_of(first + kArgmaxPart, p.size);
  BlockBest own;
  for (int64_t i = first + thread_idx(); i < end; i += num_threads()) {
    consider(own, to_float(x[i]), i);
  }
  const BlockBest best = best_of_block(own, scratch);
  if (thread_idx() != 0) return;
  const int64_t entry = row * ceil_div(p.size, kArgmaxPart) + part;
  leave_best(best, p.values + entry, p.indices + entry);
}

PYDSTP_KERNEL argmax_merge_kernel(ArgmaxParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const int64_t row = block_x(), num_parts = ceil_div(p.size, kArgmaxPart);
  const BlockBest best =
      best_of_parts(p.values + row * num_parts, p.indices + row * num_parts, num_parts, scratch);
  if (thread_idx() == 0) p.out[row] = finite_index(best);
}

template <typename T>
int launch_argmax_of(const ArgmaxParams& p, void* stream) {
  constexpr int64_t kScratchBytes = kArgmaxThreads / kWarpSize * sizeof(float);
  const Grid parts{ceil_div(p.size, kArgmaxPart), p.num_rows}, rows{p.num_rows};
  const int status =
      PYDSTP_LAUNCH(argmax_part_kernel<T>, parts, kArgmaxThreads, kScratchBytes, stream, p);
  if (status != 0) return status;
  return PYDSTP_LAUNCH(argmax_merge_kernel, rows, kArgmaxThreads, kScratchBytes, stream, p);
}

inline int launch_argmax(const ArgmaxParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_argmax_of<float>(p, stream);
    case DType::kBFloat16:
      return launch_argmax_of<BFloat16>(p, stream);
  }
  return 0;
}

}  // namespace pydstp
