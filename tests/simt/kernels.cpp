// Kernels with one mistake each, and one without. The first argument names the kernel, the second
// is the seed of the order in which blocks and threads run; prints "ok", "wrong" or the complaint.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "simt/simt.h"

using namespace pydstp;

namespace {

constexpr int kThreads = 96;

struct ReverseParams {
  const float* in;  // [2, kThreads]
  float* out;       // [2, kThreads]: each block's numbers in reversed order
};

template <bool kHasBarrier>
PYDSTP_KERNEL reverse_kernel(ReverseParams p) {
  PYDSTP_SHARED(float, numbers);
  const int64_t first = block_x() * kThreads;
  numbers[thread_idx()] = p.in[first + thread_idx()];
  if (kHasBarrier) sync_threads();
  p.out[first + thread_idx()] = numbers[kThreads - 1 - thread_idx()];
}

PYDSTP_KERNEL half_barrier_kernel(ReverseParams) {
  if (thread_idx() < kThreads / 2) sync_threads();
}

PYDSTP_KERNEL two_places_barrier_kernel(ReverseParams) {
  if (thread_idx() < kThreads / 2) {
    sync_threads();
  } else {
    sync_threads();
  }
}

PYDSTP_KERNEL divergent_sum_kernel(ReverseParams p) {
  if (lane_idx() < 16) p.out[thread_idx()] = warp_sum(1.0f);
}

PYDSTP_KERNEL divergent_line_kernel(ReverseParams p) {
  if (lane_idx() < 16) {
    p.out[thread_idx()] = warp_sum(1.0f);
  } else {
    p.out[thread_idx()] = warp_sum(2.0f);
  }
}

PYDSTP_KERNEL sum_beside_barrier_kernel(ReverseParams p) {
  if (warp_idx() == 0 && lane_idx() > 0) p.out[thread_idx()] = warp_sum(1.0f);
  sync_threads();
}

PYDSTP_KERNEL misaligned_read_kernel(ReverseParams p) {
  const Bytes16 bytes = load_16(p.in + thread_idx());
  p.out[thread_idx()] = static_cast<float>(bytes.words[0]);
}

PYDSTP_KERNEL misaligned_word_kernel(ReverseParams p) {
  const uint32_t word = stream_4(reinterpret_cast<const char*>(p.in) + thread_idx());
  p.out[thread_idx()] = static_cast<float>(word);
}

int run(const std::string& name, const ReverseParams& p) {
  const Grid grid{2};
  const int64_t bytes = kThreads * sizeof(float);
  if (name == "good") return PYDSTP_LAUNCH(reverse_kernel<true>, grid, kThreads, bytes, nullptr, p);
  if (name == "missing_barrier") {
    return PYDSTP_LAUNCH(reverse_kernel<false>, grid, kThreads, bytes, nullptr, p);
  }
  if (name == "undersized_shared") {
    return PYDSTP_LAUNCH(reverse_kernel<true>, grid, kThreads, bytes - 4, nullptr, p);
  }
  if (name == "odd_block") return PYDSTP_LAUNCH(reverse_kernel<true>, grid, 95, bytes, nullptr, p);
  if (name == "half_barrier") {
    return PYDSTP_LAUNCH(half_barrier_kernel, grid, kThreads, 0, nullptr, p);
  }
  if (name == "two_places_barrier") {
    return PYDSTP_LAUNCH(two_places_barrier_kernel, grid, kThreads, 0, nullptr, p);
  }
  if (name == "divergent_sum") {
    return PYDSTP_LAUNCH(divergent_sum_kernel, grid, kThreads, 0, nullptr, p);
  }
  if (name == "misaligned_read") {
    return PYDSTP_LAUNCH(misaligned_read_kernel, Grid{1}, kThreads, 0, nullptr, p);
  }
  if (name == "misaligned_word") {
    return PYDSTP_LAUNCH(misaligned_word_kernel, Grid{1}, kThreads, 0, nullptr, p);
  }
  if (name == "divergent_line") {
    return PYDSTP_LAUNCH(divergent_line_kernel, grid, kThreads, 0, nullptr, p);
  }
  return PYDSTP_LAUNCH(sum_beside_barrier_kernel, grid, kThreads, 0, nullptr, p);
}

bool is_reversed(const float* in, const float* out) {
  for (int block = 0; block < 2; ++block)
    for (int i = 0; i < kThreads; ++i)
      if (out[block * kThreads + i] != in[block * kThreads + kThreads - 1 - i]) return false;
  return true;
}

}  // namespace

int main(int, char** arguments) {
  float in[2 * kThreads], out[2 * kThreads] = {};
  for (int i = 0; i < 2 * kThreads; ++i) in[i] = static_cast<float>(i);
  simt::set_seed(strtoull(arguments[2], nullptr, 10));
  try {
    run(arguments[1], {in, out});
    puts(is_reversed(in, out) ? "ok" : "wrong");
  } catch (const std::exception& error) {
    puts(error.what());
  }
  return 0;
}
