#include "kernels/qk_norm_rope.h"

#include "common/thread_pool.h"
#include "cpu/rows.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

// (low, high) -> (low * cos - high * sin, high * cos + low * sin) over the two halves of a head;
// cosines and sines are rounded to Angle.
template <typename Angle, typename T>
void rotate_head(T* head, int64_t half, const float* cos_sin) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const F32 low = load_first(head + i, n), high = load_first(head + half + i, n);
    const F32 cosine = round_lanes<Angle>(load_first(cos_sin + i, n));
    const F32 sine = round_lanes<Angle>(load_first(cos_sin + half + i, n));
    store_first(head + i, multiply_add(low, cosine, -(high * sine)), n);
    store_first(head + half + i, multiply_add(high, cosine, low * sine), n);
  }
}

template <typename T>
void rotate_tokens(const QkNormRopeParams& p, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    T* head = static_cast<T*>(p.qkv) + token * (p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    const float* cos_sin = p.cos_sin + token * p.head_dim;
    for (int64_t h = 0; h < p.num_heads + p.num_kv_heads; ++h, head += p.head_dim) {
      const void* weight = h < p.num_heads ? p.q_weight : p.k_weight;
      if (weight) rms_norm_row(head, static_cast<const T*>(weight), p.head_dim, p.eps, head);
      p.float_angles ? rotate_head<float>(head, p.head_dim / 2, cos_sin)
                     : rotate_head<T>(head, p.head_dim / 2, cos_sin);
    }
  }
}

template <typename T>
void rotate(const QkNormRopeParams& p, ThreadPool& pool) {
  const int64_t token_size = (p.num_heads + p.num_kv_heads) * p.head_dim;
  pool.parallel_for(0, p.num_tokens, rows_per_part(token_size),
                    [&p](int64_t begin, int64_t end) { rotate_tokens<T>(p, begin, end); });
}

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p, ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kFloat32:
      return rotate<float>(p, pool);
    case DType::kBFloat16:
      return rotate<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
