#include "kernels/rms_norm.h"

#include "common/thread_pool.h"
#include "cpu/rows.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

template <typename T>
void norm_tokens(const RmsNormParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.hidden_size;
  for (int64_t token = begin; token < end; ++token) {
    const T* x = static_cast<const T*>(p.x) + token * n;
    if (p.residual) {
      T* residual = static_cast<T*>(p.residual) + token * n;
      map_row(residual, n, [](F32 a, F32 b) { return a + b; }, residual, x);
      x = residual;
    }
    rms_norm_row(x, static_cast<const T*>(p.weight), n, p.eps, static_cast<T*>(p.out) + token * n);
  }
}

template <typename T>
void norm(const RmsNormParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.num_tokens, rows_per_part(p.hidden_size),
                    [&p](int64_t begin, int64_t end) { norm_tokens<T>(p, begin, end); });
}

}  // namespace

void rms_norm(const RmsNormParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return norm<float>(p, pool);
    case DType::kBFloat16:
      return norm<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
