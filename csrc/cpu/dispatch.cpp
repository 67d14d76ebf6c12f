#include "cpu/dispatch.h"

#include <atomic>

#include "cpu/tier.h"

namespace pydstp {

#ifdef PYDSTP_WITH_SIMT
namespace simt {
void set_seed(uint64_t seed);  // simt/simt_host.h
}

void set_simt_seed(uint64_t seed) { simt::set_seed(seed); }
#endif

namespace {

struct Tier {
  const char* name;
  KernelTable kernels;
};

#define PYDSTP_TIER_OF(tier)                                                                     \
  Tier {                                                                                         \
    #tier, {                                                                                     \
      tier::linear, tier::rms_norm, tier::silu_and_mul, tier::qk_norm_rope,                      \
          tier::decode_attention, copy_into_arena, copy_from_arena, average_rows, detect_shifts, \
          select_slots, tier::attention_return, tier::sketch_scale, tier::sketch_keys,           \
          tier::prefill_attention, tier::quantise_rows, tier::dequantise_rows,                   \
          tier::quantised_linear, find_largest, draw_tokens, tier::attention_sums,               \
          multiply_by_experts, multiply_by_quantised_experts                                     \
    }                                                                                            \
  }

#ifdef __x86_64__
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512bf16() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

#ifdef PYDSTP_WITH_SIMT
template <typename Params, void (*kTwin)(const Params&)>
void without_pool(const Params& p, ThreadPool&) {
  kTwin(p);
}

// prefill_attention and attention_sums have no twin: on a GPU they are the library's.
Tier simt_twins() {
  return {"simt",
          {without_pool<LinearParams, linear_simt>,
           without_pool<RmsNormParams, rms_norm_simt>,
           without_pool<SiluAndMulParams, silu_and_mul_simt>,
           without_pool<QkNormRopeParams, qk_norm_rope_simt>,
           without_pool<DecodeAttentionParams, decode_attention_simt>,
           without_pool<StoreKvParams, store_kv_simt>,
           without_pool<GatherKvParams, gather_kv_simt>,
           without_pool<MeanKvParams, mean_kv_simt>,
           without_pool<ShiftDetectParams, shift_detect_simt>,
           without_pool<ShiftSelectParams, shift_select_simt>,
           without_pool<AttentionReturnParams, attention_return_simt>,
           without_pool<SketchScaleParams, sketch_scale_simt>,
           without_pool<SketchKeysParams, sketch_keys_simt>,
           portable::prefill_attention,
           without_pool<QuantiseRowsParams, quantise_rows_simt>,
           without_pool<DequantiseRowsParams, dequantise_rows_simt>,
           without_pool<QuantisedLinearParams, quantised_linear_simt>,
           without_pool<ArgmaxParams, argmax_simt>,
           without_pool<SampleTokensParams, sample_tokens_simt>,
           portable::attention_sums,
           without_pool<ExpertLinearParams, expert_linear_simt>,
           without_pool<QuantisedExpertLinearParams, quantised_expert_linear_simt>}};
}
#endif

std::vector<Tier> find_tiers() {
  std::vector<Tier> tiers;
#ifdef __x86_64__
  if (has_avx512bf16()) tiers.push_back(PYDSTP_TIER_OF(avx512bf16));
  if (has_avx2()) tiers.push_back(PYDSTP_TIER_OF(avx2));
#endif
  tiers.push_back(PYDSTP_TIER_OF(portable));
#ifdef PYDSTP_WITH_SIMT
  tiers.push_back(PYDSTP_TIER_OF(avx512bf16_emulated));
  tiers.push_back(simt_twins());
#endif
  return tiers;
}

const std::vector<Tier>& tiers() {
  static const std::vector<Tier> found = find_tiers();
  return found;
}

std::atomic<const Tier*>& current() {
  static std::atomic<const Tier*> tier{&tiers().front()};
  return tier;
}

const KernelTable& kernels() { return current().load(std::memory_order_relaxed)->kernels; }

}  // namespace

std::vector<std::string> available_tiers() {
  std::vector<std::string> names;
  for (const Tier& tier : tiers()) names.push_back(tier.name);
  return names;
}

std::string current_tier() { return current().load()->name; }

bool set_tier(const std::string& name) {
  for (const Tier& tier : tiers()) {
    if (!name.empty() && name != tier.name) continue;
    current() = &tier;
    return true;
  }
  return false;
}

std::vector<std::pair<std::string, bool>> cpu_features() {
#ifdef __x86_64__
  return {{"avx2", has_avx2()}, {"avx512bf16", has_avx512bf16()}};
#else
  return {};
#endif
}

void linear_cpu(const LinearParams& p, ThreadPool& pool) { kernels().linear(p, pool); }
void rms_norm_cpu(const RmsNormParams& p, ThreadPool& pool) { kernels().rms_norm(p, pool); }

void silu_and_mul_cpu(const SiluAndMulParams& p, ThreadPool& pool) {
  kernels().silu_and_mul(p, pool);
}

void qk_norm_rope_cpu(const QkNormRopeParams& p, ThreadPool& pool) {
  kernels().qk_norm_rope(p, pool);
}

void decode_attention_cpu(const DecodeAttentionParams& p, ThreadPool& pool) {
  kernels().decode_attention(p, pool);
}

void store_kv_cpu(const StoreKvParams& p, ThreadPool& pool) { kernels().store_kv(p, pool); }
void gather_kv_cpu(const GatherKvParams& p, ThreadPool& pool) { kernels().gather_kv(p, pool); }
void mean_kv_cpu(const MeanKvParams& p, ThreadPool& pool) { kernels().mean_kv(p, pool); }

void shift_detect_cpu(const ShiftDetectParams& p, ThreadPool& pool) {
  kernels().shift_detect(p, pool);
}

void shift_select_cpu(const ShiftSelectParams& p, ThreadPool& pool) {
  kernels().shift_select(p, pool);
}

void attention_return_cpu(const AttentionReturnParams& p, ThreadPool& pool) {
  kernels().attention_return(p, pool);
}

void sketch_scale_cpu(const SketchScaleParams& p, ThreadPool& pool) {
  kernels().sketch_scale(p, pool);
}

void sketch_keys_cpu(const SketchKeysParams& p, ThreadPool& pool) {
  kernels().sketch_keys(p, pool);
}

void prefill_attention_cpu(const PrefillAttentionParams& p, ThreadPool& pool) {
  kernels().prefill_attention(p, pool);
}

void quantise_rows_cpu(const QuantiseRowsParams& p, ThreadPool& pool) {
  kernels().quantise_rows(p, pool);
}

void dequantise_rows_cpu(const DequantiseRowsParams& p, ThreadPool& pool) {
  kernels().dequantise_rows(p, pool);
}

void argmax_cpu(const ArgmaxParams& p, ThreadPool& pool) { kernels().argmax(p, pool); }

void sample_tokens_cpu(const SampleTokensParams& p, ThreadPool& pool) {
  kernels().sample_tokens(p, pool);
}

void attention_sums_cpu(const AttentionSumsParams& p, ThreadPool& pool) {
  kernels().attention_sums(p, pool);
}

void expert_linear_cpu(const ExpertLinearParams& p, ThreadPool& pool) {
  kernels().expert_linear(p, pool);
}

void quantised_expert_linear_cpu(const QuantisedExpertLinearParams& p, ThreadPool& pool) {
  kernels().quantised_expert_linear(p, pool);
}

void quantised_linear_cpu(const QuantisedLinearParams& p, ThreadPool& pool) {
  kernels().quantised_linear(p, pool);
}

}  // namespace pydstp
