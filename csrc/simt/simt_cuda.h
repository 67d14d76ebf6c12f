// The vocabulary of simt.h on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "simt/simt.h"

#define PYDSTP_KERNEL static __global__ void  // headers may be instantiated by several files
#define PYDSTP_DEVICE __device__ inline

#define PYDSTP_UNROLL _Pragma("unroll")
#define PYDSTP_UNROLL_BY(n) PYDSTP_PRAGMA(unroll n)
#define PYDSTP_PRAGMA(words) _Pragma(#words)

#define PYDSTP_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char pydstp_shared[]; \
  T* const name = reinterpret_cast<T*>(pydstp_shared)

#define PYDSTP_LAUNCH(kernel, grid, num_threads, shared_bytes, stream, params) \
  ::pydstp::simt::launch(&kernel, grid, num_threads, shared_bytes, stream, params)

namespace pydstp {

PYDSTP_DEVICE int64_t block_x() { return blockIdx.x; }
PYDSTP_DEVICE int64_t block_y() { return blockIdx.y; }
PYDSTP_DEVICE int64_t block_z() { return blockIdx.z; }
PYDSTP_DEVICE int thread_idx() { return static_cast<int>(threadIdx.x); }
PYDSTP_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }
PYDSTP_DEVICE int lane_idx() { return thread_idx() % kWarpSize; }
PYDSTP_DEVICE int warp_idx() { return thread_idx() / kWarpSize; }
PYDSTP_DEVICE int num_warps() { return num_threads() / kWarpSize; }

PYDSTP_DEVICE void sync_threads() { __syncthreads(); }

PYDSTP_DEVICE float warp_sum(float x) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

PYDSTP_DEVICE uint64_t warp_sum(uint64_t x) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(x), step);
  }
  return x;
}

PYDSTP_DEVICE float warp_max(float x) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

PYDSTP_DEVICE void atomic_or(int32_t* address, int32_t bits) { atomicOr(address, bits); }

PYDSTP_DEVICE uint64_t atomic_add(uint64_t* address, uint64_t number) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(address), number);
}

PYDSTP_DEVICE int32_t dot_4(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

PYDSTP_DEVICE uint32_t stream_4(const void* address) {
  return __ldcs(static_cast<const uint32_t*>(address));
}

PYDSTP_DEVICE Bytes16 as_bytes(uint4 v) { return {{v.x, v.y, v.z, v.w}}; }

PYDSTP_DEVICE Bytes16 load_16(const void* address) {
  return as_bytes(__ldg(static_cast<const uint4*>(address)));
}

PYDSTP_DEVICE Bytes16 stream_16(const void* address) {
  return as_bytes(__ldcs(static_cast<const uint4*>(address)));
}

namespace simt {

template <typename Params>
int launch(void (*kernel)(Params), Grid grid, int num_threads, int64_t shared_bytes, void* stream,
           const Params& params) {
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const auto bytes = static_cast<size_t>(shared_bytes);
  if (bytes > 48 * 1024) {  // more than the default needs to be asked for
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (status != cudaSuccess) return status;
  }
  kernel<<<blocks, num_threads, bytes, static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace simt
}  // namespace pydstp
