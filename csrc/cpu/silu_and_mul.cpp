#include "kernels/silu_and_mul.h"

#include "common/thread_pool.h"
#include "cpu/rows.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

template <typename T>
void gate_tokens(const SiluAndMulParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.intermediate_size;
  const auto silu_times = [](F32 gate, F32 up) {
    return round_lanes<T>(gate / (1.0f + exp_of(-gate))) * up;
  };
  for (int64_t token = begin; token < end; ++token) {
    const T* gate = static_cast<const T*>(p.gate_up) + token * 2 * n;
    map_row(static_cast<T*>(p.out) + token * n, n, silu_times, gate, gate + n);
  }
}

template <typename T>
void gate(const SiluAndMulParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.num_tokens, rows_per_part(p.intermediate_size),
                    [&p](int64_t begin, int64_t end) { gate_tokens<T>(p, begin, end); });
}

}  // namespace

void silu_and_mul(const SiluAndMulParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return gate<float>(p, pool);
    case DType::kBFloat16:
      return gate<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
