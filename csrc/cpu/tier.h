// The kernels that exist once per instruction set, as one table per tier.
#pragma once

#include "kernels/decode_attention.h"
#include "kernels/gather_kv.h"
#include "kernels/linear.h"
#include "kernels/qk_norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/silu_and_mul.h"
#include "kernels/store_kv.h"

namespace pydstp {

struct KernelTable {
  void (*linear)(const LinearParams&, ThreadPool&);
  void (*rms_norm)(const RmsNormParams&, ThreadPool&);
  void (*silu_and_mul)(const SiluAndMulParams&, ThreadPool&);
  void (*qk_norm_rope)(const QkNormRopeParams&, ThreadPool&);
  void (*decode_attention)(const DecodeAttentionParams&, ThreadPool&);
  void (*store_kv)(const StoreKvParams&, ThreadPool&);
  void (*gather_kv)(const GatherKvParams&, ThreadPool&);
};

#define PYDSTP_DECLARE_TIER(tier)                                          \
  namespace tier {                                                         \
  void linear(const LinearParams& p, ThreadPool& pool);                    \
  void rms_norm(const RmsNormParams& p, ThreadPool& pool);                 \
  void silu_and_mul(const SiluAndMulParams& p, ThreadPool& pool);          \
  void qk_norm_rope(const QkNormRopeParams& p, ThreadPool& pool);          \
  void decode_attention(const DecodeAttentionParams& p, ThreadPool& pool); \
  }

PYDSTP_DECLARE_TIER(portable)
PYDSTP_DECLARE_TIER(avx2)
PYDSTP_DECLARE_TIER(avx512bf16)
PYDSTP_DECLARE_TIER(avx512bf16_emulated)

#undef PYDSTP_DECLARE_TIER

// Row copies: the same code for every instruction set.
void copy_into_arena(const StoreKvParams& p, ThreadPool& pool);
void copy_from_arena(const GatherKvParams& p, ThreadPool& pool);

}  // namespace pydstp
