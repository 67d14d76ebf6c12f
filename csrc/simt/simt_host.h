// The vocabulary of simt.h on the host, for tests: blocks run one after another, each thread of a
// block is a fiber. What it checks, by throwing std::runtime_error from PYDSTP_LAUNCH:
//
//   - all threads of a block reach the same barriers (a thread that left, or waits at another line)
//   - all lanes of a warp reach the same warp operation
//   - nothing is written past the shared memory that was asked for
//   - 16 bytes are read from multiples of 16 only, 4 from multiples of 4
//
// Shared memory starts as NaN in every block. With a seed, blocks and threads run in shuffled
// order: that, and the NaN, make a missing barrier show as a wrong result.
#pragma once

#include <cmath>
#include <cstring>

#include "simt/simt.h"

#define PYDSTP_KERNEL static void
#define PYDSTP_DEVICE static inline

#define PYDSTP_UNROLL
#define PYDSTP_UNROLL_BY(n)

#define PYDSTP_SHARED(T, name) T* const name = static_cast<T*>(::pydstp::simt::current()->shared)

#define PYDSTP_LAUNCH(kernel, grid, num_threads, shared_bytes, stream, params) \
  ::pydstp::simt::launch(&kernel, #kernel, grid, num_threads, shared_bytes, stream, params)

namespace pydstp {
namespace simt {

// What a running thread knows of itself.
struct ThreadView {
  Grid block;
  int thread = 0, num_threads = 0;
  void* shared = nullptr;
};

enum class WarpOp { kSum, kMax, kWholeSum };

const ThreadView* current();
void wait_at_barrier(int line);
void complain(const char* what);  // thrown when the block is over
float combine_warp(float x, WarpOp op, int line);
uint64_t combine_warp(uint64_t x, WarpOp op, int line);

// Order in which blocks and threads run: 0 is ascending, anything else shuffles.
void set_seed(uint64_t seed);

void run_grid(const char* name, void (*body)(const void*), const void* context, Grid grid,
              int num_threads, int64_t shared_bytes);

template <typename Params>
int launch(void (*kernel)(Params), const char* name, Grid grid, int num_threads,
           int64_t shared_bytes, void* /*stream*/, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  const Call call{kernel, params};
  const auto body = [](const void* context) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(c.params);
  };
  run_grid(name, body, &call, grid, num_threads, shared_bytes);
  return 0;
}

}  // namespace simt

PYDSTP_DEVICE int64_t block_x() { return simt::current()->block.x; }
PYDSTP_DEVICE int64_t block_y() { return simt::current()->block.y; }
PYDSTP_DEVICE int64_t block_z() { return simt::current()->block.z; }
PYDSTP_DEVICE int thread_idx() { return simt::current()->thread; }
PYDSTP_DEVICE int num_threads() { return simt::current()->num_threads; }
PYDSTP_DEVICE int lane_idx() { return thread_idx() % kWarpSize; }
PYDSTP_DEVICE int warp_idx() { return thread_idx() / kWarpSize; }
PYDSTP_DEVICE int num_warps() { return num_threads() / kWarpSize; }

PYDSTP_DEVICE void sync_threads(int line = __builtin_LINE()) { simt::wait_at_barrier(line); }

PYDSTP_DEVICE float warp_sum(float x, int line = __builtin_LINE()) {
  return simt::combine_warp(x, simt::WarpOp::kSum, line);
}

PYDSTP_DEVICE uint64_t warp_sum(uint64_t x, int line = __builtin_LINE()) {
  return simt::combine_warp(x, simt::WarpOp::kWholeSum, line);
}

PYDSTP_DEVICE float warp_max(float x, int line = __builtin_LINE()) {
  return simt::combine_warp(x, simt::WarpOp::kMax, line);
}

PYDSTP_DEVICE Bytes16 load_16(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16) simt::complain("misaligned read of 16 bytes");
  Bytes16 bytes;
  memcpy(&bytes, address, sizeof(bytes));
  return bytes;
}

PYDSTP_DEVICE Bytes16 stream_16(const void* address) { return load_16(address); }

PYDSTP_DEVICE uint32_t stream_4(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 4) simt::complain("misaligned read of 4 bytes");
  uint32_t bytes;
  memcpy(&bytes, address, sizeof(bytes));
  return bytes;
}

PYDSTP_DEVICE int32_t dot_4(uint32_t a, uint32_t b, int32_t sum) {
  int8_t left[4], right[4];
  memcpy(left, &a, sizeof(left));
  memcpy(right, &b, sizeof(right));
  for (int i = 0; i < 4; ++i) sum += left[i] * right[i];
  return sum;
}

PYDSTP_DEVICE uint64_t atomic_add(uint64_t* address, uint64_t number) {
  return __atomic_fetch_add(address, number, __ATOMIC_RELAXED);
}

PYDSTP_DEVICE void atomic_or(int32_t* address, int32_t bits) {
  __atomic_fetch_or(address, bits, __ATOMIC_RELAXED);
}

}  // namespace pydstp
