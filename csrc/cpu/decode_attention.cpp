// Two passes over list and text, and a third one for a monitor: see attention_pass.h.
#include "kernels/decode_attention.h"

#include "cpu/attention_pass.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

template <typename T>
void attend(const DecodeAttentionParams& p, ThreadPool& pool) {
  const AttentionWork work = find_work(p);
  attend_lists<T>(p, work, pool);
  merge_lists<T>(p, work, pool);
}

}  // namespace

void decode_attention(const DecodeAttentionParams& p, ThreadPool& pool) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return attend<float>(p, pool);
    case DType::kBFloat16:
      return attend<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
