// The vocabulary of GPU kernels. It is closed: a kernel uses these names, plain C++ and nothing
// else of CUDA, and so the same source also runs on the host, one fiber per thread.
//
//   PYDSTP_KERNEL, PYDSTP_DEVICE            in front of kernels and of functions they call
//   PYDSTP_SHARED(T, name)                  T* name: the block's dynamic shared memory
//   PYDSTP_LAUNCH(kernel, grid, num_threads, shared_bytes, stream, params)   0, or a CUDA error
//   block_x(), block_y(), block_z()         this block's place in the Grid
//   thread_idx(), num_threads()             within the block, which is one-dimensional
//   lane_idx(), warp_idx(), num_warps()     num_threads is a multiple of kWarpSize
//   sync_threads()                          every thread of the block, at the same line
//   warp_sum(x), warp_max(x)                every lane of the warp; all lanes get the result. x is
//                                           a float; for warp_sum also a uint64_t
//   atomic_or(address, bits)
//   atomic_add(address, number)             uint64_t, in shared memory too; gives what was there
//   dot_4(a, b, sum)                        sum + the products of the four int8 in a and b
//   load_16(address), stream_16(address)    the 16 bytes at a multiple of 16; the second for what
//                                           is read once and need not be kept near
//   stream_4(address)                       as stream_16, 4 bytes
//   PYDSTP_UNROLL, PYDSTP_UNROLL_BY(n)      in front of a loop
#pragma once

#include <cstdint>

namespace pydstp {

constexpr int kWarpSize = 32;

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

}  // namespace pydstp

#ifdef __CUDACC__
#include "simt/simt_cuda.h"
#else
#include "simt/simt_host.h"
#endif
