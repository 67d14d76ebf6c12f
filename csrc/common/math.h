// Small integer helpers; internal linkage for the reason given in dtype.h.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace pydstp {

static inline PYDSTP_HOST_DEVICE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline PYDSTP_HOST_DEVICE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline PYDSTP_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline PYDSTP_HOST_DEVICE int64_t clamp_to(int64_t x, int64_t low, int64_t high) {
  return max_of(low, min_of(x, high));
}

// Whether 0 <= x < size.
static inline PYDSTP_HOST_DEVICE bool is_index(int64_t x, int64_t size) {
  return x >= 0 && x < size;
}

}  // namespace pydstp
