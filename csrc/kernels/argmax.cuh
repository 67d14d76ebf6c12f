// Two kernels. The first has one block per (part of kArgmaxPart entries, row) and leaves the
// largest of its part and where it is; the second has one block per row and does the same with what
// the first left. A NaN in a part becomes the part's largest.
#pragma once

#include "common/math.h"
#include "kernels/argmax.h"
#include "kernels/block_sum.cuh"

namespace pydstp {

constexpr int kArgmaxThreads = 256;

// What a thread, and then a block, has found so far.
struct ArgmaxBest {
  float value = -INFINITY;
  float place = -INFINITY;  // minus the index, exact below 2^24: the lowest index is the largest
  bool has_nan = false;
};

PYDSTP_DEVICE void consider(ArgmaxBest& best, float value, int64_t index) {
  const float place = -static_cast<float>(index);
  if (value != value) best.has_nan = true;
  if (!(value > best.value || (value == best.value && place > best.place))) return;
  best.value = value;
  best.place = place;
}

// What the threads of a block have found together. scratch: [num_warps].
PYDSTP_DEVICE ArgmaxBest best_of_block(const ArgmaxBest& own, float* scratch) {
  ArgmaxBest best;
  best.value = block_max(own.value, scratch);
  best.place = block_max(own.value == best.value ? own.place : -INFINITY, scratch);
  best.has_nan = block_max(own.has_nan ? 1.0f : 0.0f, scratch) > 0.0f;
  return best;
}

template <typename T>
PYDSTP_KERNEL argmax_part_kernel(ArgmaxParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const int64_t part = block_x(), row = block_y(), first = part * kArgmaxPart;
  const T* x = static_cast<const T*>(p.x) + row * p.size;
  const int64_t end = min_of(first + kArgmaxPart, p.size);
  ArgmaxBest own;
  for (int64_t i = first + thread_idx(); i < end; i += num_threads()) {
    consider(own, to_float(x[i]), i);
  }
  const ArgmaxBest best = best_of_block(own, scratch);
  if (thread_idx() != 0) return;
  const int64_t entry = row * ceil_div(p.size, kArgmaxPart) + part;
  p.values[entry] = best.has_nan ? NAN : best.value;
  p.indices[entry] = best.has_nan ? -1 : static_cast<int32_t>(-best.place);
}

PYDSTP_KERNEL argmax_merge_kernel(ArgmaxParams p) {
  PYDSTP_SHARED(float, scratch);  // [num_warps]
  const int64_t row = block_x(), num_parts = ceil_div(p.size, kArgmaxPart);
  ArgmaxBest own;
  for (int64_t i = thread_idx(); i < num_parts; i += num_threads()) {
    consider(own, p.values[row * num_parts + i], p.indices[row * num_parts + i]);
  }
  const ArgmaxBest best = best_of_block(own, scratch);
  const bool is_finite = !best.has_nan && best.value > -INFINITY && best.value < INFINITY;
  if (thread_idx() == 0) p.out[row] = is_finite ? static_cast<int32_t>(-best.place) : -1;
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
