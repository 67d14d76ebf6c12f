// The largest number that the threads of a block have seen, and where it is.
#pragma once

#include "kernels/block_sum.cuh"

namespace pydstp {

// What a thread, and then a block, has found so far.
struct BlockBest {
  float value = -INFINITY;
  float place = -INFINITY;  // minus the index, exact below 2^24: the lowest index is the largest
  bool has_nan = false;
};

PYDSTP_DEVICE void consider(BlockBest& best, float value, int64_t index) {
  const float place = -static_cast<float>(index);
  if (value != value) best.has_nan = true;
  if (!(value > best.value || (value == best.value && place > best.place))) return;
  best.value = value;
  best.place = place;
}

// What the threads of a block have found together. scratch: [num_warps].
PYDSTP_DEVICE BlockBest best_of_block(const BlockBest& own, float* scratch) {
  BlockBest best;
  best.value = block_max(own.value, scratch);
  best.place = block_max(own.value == best.value ? own.place : -INFINITY, scratch);
  best.has_nan = block_max(own.has_nan ? 1.0f : 0.0f, scratch) > 0.0f;
  return best;
}

// For a later block: a NaN becomes the largest. One thread calls it.
PYDSTP_DEVICE void leave_best(const BlockBest& best, float* value, int32_t* index) {
  *value = best.has_nan ? NAN : best.value;
  *index = best.has_nan ? -1 : static_cast<int32_t>(-best.place);
}

// The best of what `num_parts` blocks left. scratch: [num_warps].
PYDSTP_DEVICE BlockBest best_of_parts(const float* values, const int32_t* indices,
                                      int64_t num_parts, float* scratch) {
  BlockBest own;
  for (int64_t i = thread_idx(); i < num_parts; i += num_threads()) {
    consider(own, values[i], indices[i]);
  }
  return best_of_block(own, scratch);
}

// Its index; -1 if it is an infinity, or if there was a NaN.
PYDSTP_DEVICE int32_t finite_index(const BlockBest& best) {
  const bool is_finite = !best.has_nan && best.value > -INFINITY && best.value < INFINITY;
  return is_finite ? static_cast<int32_t>(-best.place) : -1;
}

}  // namespace pydstp
