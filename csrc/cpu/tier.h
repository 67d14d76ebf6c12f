// The kernels that exist once per instruction set, as one table per tier.
#pragma once

#include "kernels/argmax.h"
#include "kernels/attention_return.h"
#include "kernels/attention_sums.h"
#include "kernels/decode_attention.h"
#include "kernels/expert_linear.h"
#include "kernels/gather_kv.h"
#include "kernels/key_sketch.h"
#include "kernels/linear.h"
#include "kernels/mean_kv.h"
#include "kernels/prefill_attention.h"
#include "kernels/qk_norm_rope.h"
#include "kernels/quantised.h"
#include "kernels/rms_norm.h"
#include "kernels/sample_tokens.h"
#include "kernels/shift.h"
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
  void (*mean_kv)(const MeanKvParams&, ThreadPool&);
  void (*shift_detect)(const ShiftDetectParams&, ThreadPool&);
  void (*shift_select)(const ShiftSelectParams&, ThreadPool&);
  void (*attention_return)(const AttentionReturnParams&, ThreadPool&);
  void (*sketch_scale)(const SketchScaleParams&, ThreadPool&);
  void (*sketch_keys)(const SketchKeysParams&, ThreadPool&);
  void (*prefill_attention)(const PrefillAttentionParams&, ThreadPool&);
  void (*quantise_rows)(const QuantiseRowsParams&, ThreadPool&);
  void (*dequantise_rows)(const DequantiseRowsParams&, ThreadPool&);
  void (*quantised_linear)(const QuantisedLinearParams&, ThreadPool&);
  void (*argmax)(const ArgmaxParams&, ThreadPool&);
  void (*sample_tokens)(const SampleTokensParams&, ThreadPool&);
  void (*attention_sums)(const AttentionSumsParams&, ThreadPool&);
  void (*expert_linear)(const ExpertLinearParams&, ThreadPool&);
  void (*quantised_expert_linear)(const QuantisedExpertLinearParams&, ThreadPool&);
};

#define PYDSTP_DECLARE_TIER(tier)                                          \
  namespace tier {                                                         \
  void linear(const LinearParams& p, ThreadPool& pool);                    \
  void rms_norm(const RmsNormParams& p, ThreadPool& pool);                 \
  void silu_and_mul(const SiluAndMulParams& p, ThreadPool& pool);          \
  void qk_norm_rope(const QkNormRopeParams& p, ThreadPool& pool);          \
  void decode_attention(const DecodeAttentionParams& p, ThreadPool& pool); \
  void attention_return(const AttentionReturnParams& p, ThreadPool& pool); \
  void sketch_scale(const SketchScaleParams& p, ThreadPool& pool);         \
  void sketch_keys(const SketchKeysParams& p, ThreadPool& pool);           \
  void prefill_attention(const PrefillAttentionParams&, ThreadPool&);      \
  void quantise_rows(const QuantiseRowsParams& p, ThreadPool& pool);       \
  void dequantise_rows(const DequantiseRowsParams& p, ThreadPool& pool);   \
  void quantised_linear(const QuantisedLinearParams& p, ThreadPool& pool); \
  void attention_sums(const AttentionSumsParams& p, ThreadPool& pool);     \
  }

PYDSTP_DECLARE_TIER(portable)
PYDSTP_DECLARE_TIER(avx2)
PYDSTP_DECLARE_TIER(avx512bf16)
PYDSTP_DECLARE_TIER(avx512bf16_emulated)

#undef PYDSTP_DECLARE_TIER

// Copies and decisions: the same code for every instruction set.
void copy_into_arena(const StoreKvParams& p, ThreadPool& pool);
void copy_from_arena(const GatherKvParams& p, ThreadPool& pool);
void average_rows(const MeanKvParams& p, ThreadPool& pool);
void detect_shifts(const ShiftDetectParams& p, ThreadPool& pool);
void select_slots(const ShiftSelectParams& p, ThreadPool& pool);
void find_largest(const ArgmaxParams& p, ThreadPool& pool);
void draw_tokens(const SampleTokensParams& p, ThreadPool& pool);
void multiply_by_experts(const ExpertLinearParams& p, ThreadPool& pool);
void multiply_by_quantised_experts(const QuantisedExpertLinearParams& p, ThreadPool& pool);

}  // namespace pydstp
