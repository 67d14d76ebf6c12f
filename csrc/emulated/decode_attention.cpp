#include "kernels/decode_attention.cuh"

namespace pydstp {

void decode_attention_simt(const DecodeAttentionParams& p) { launch_decode_attention(p, nullptr); }

}  // namespace pydstp
