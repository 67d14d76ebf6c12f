// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random
// numbers that depend on a key and a counter alone.
#pragma once

#include "simt/simt.h"

namespace pydstp {

// The upper 64 bits of a product.
PYDSTP_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu,
                 b_high = b >> 32;
  const uint64_t middle = a_high * b_low + (a_low * b_low >> 32);
  const uint64_t carried = a_low * b_high + (middle & 0xffffffffu);
  return a_high * b_high + (middle >> 32) + (carried >> 32);
}

// A number in [0, 1): the first double that NumPy's Philox gives for key (seed, request) and
// counter (step, 0, 0, 0). It counts up before it draws.
PYDSTP_DEVICE double keyed_uniform(uint64_t seed, uint64_t request, uint64_t step) {
  constexpr uint64_t kFactors[2] = {0xD2E7470EE14C6C93ull, 0xCA5A826395121157ull};
  uint64_t x[4] = {step + 1, 0, 0, 0}, key[2] = {seed, request};
  for (int round = 0; round < 10; ++round) {
    const uint64_t y[4] = {high_product(kFactors[1], x[2]) ^ x[1] ^ key[0], kFactors[1] * x[2],
                           high_product(kFactors[0], x[0]) ^ x[3] ^ key[1], kFactors[0] * x[0]};
    for (int i = 0; i < 4; ++i) x[i] = y[i];
    key[0] += 0x9E3779B97F4A7C15ull;
    key[1] += 0xBB67AE8584CAA73Bull;
  }
  return static_cast<double>(x[0] >> 11) * (1.0 / 9007199254740992.0);
}

}  // namespace pydstp
