// A sum over all threads of a block.
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

}  // namespace pydstp
