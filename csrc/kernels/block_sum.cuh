// Sums and maxima over all threads of a block, and places among them.
#pragma once

#include "simt/simt.h"

namespace pydstp {

// scratch: [num_warps()] in shared memory, free again when this returns. Every thread calls it and
// gets the sum, always added up in the same order.
PYDSTP_DEVICE float block_sum(float x, float* scratch) {
  const float of_warp = warp_sum(x);
  if (lane_idx() == 0) scratch[warp_idx()] = of_warp;
  sync_threads();
  float total = 0.0f;
  for (int i = 0; i < num_warps(); ++i) total += scratch[i];
  sync_threads();
  return total;
}

// As above, of whole numbers.
PYDSTP_DEVICE uint64_t block_sum(uint64_t x, uint64_t* scratch) {
  const uint64_t of_warp = warp_sum(x);
  if (lane_idx() == 0) scratch[warp_idx()] = of_warp;
  sync_threads();
  uint64_t total = 0;
  for (int i = 0; i < num_warps(); ++i) total += scratch[i];
  sync_threads();
  return total;
}

// values[i] becomes the sum of values[0] to values[i]; values: [num_threads()] in shared memory.
PYDSTP_DEVICE void block_prefix(uint64_t* values) {
  const int thread = thread_idx();
  for (int step = 1; step < num_threads(); step *= 2) {
    const uint64_t before = thread >= step ? values[thread - step] : 0;
    sync_threads();
    values[thread] += before;
    sync_threads();
  }
}

// As block_sum, the largest.
PYDSTP_DEVICE float block_max(float x, float* scratch) {
  const float of_warp = warp_max(x);
  if (lane_idx() == 0) scratch[warp_idx()] = of_warp;
  sync_threads();
  float largest = scratch[0];
  for (int i = 1; i < num_warps(); ++i) largest = fmaxf(largest, scratch[i]);
  sync_threads();
  return largest;
}

// How many threads before this one have their flag set; *count is how many have at all. scratch:
// [num_threads()] in shared memory, free again when this returns.
PYDSTP_DEVICE int block_rank(bool flag, int32_t* scratch, int* count) {
  const int thread = thread_idx(), own = flag ? 1 : 0;
  scratch[thread] = own;
  sync_threads();
  for (int step = 1; step < num_threads(); step *= 2) {
    const int32_t before = thread >= step ? scratch[thread - step] : 0;
    sync_threads();
    scratch[thread] += before;
    sync_threads();
  }
  const int rank = scratch[thread] - own;
  *count = scratch[num_threads() - 1];
  sync_threads();
  return rank;
}

}  // namespace pydstp
