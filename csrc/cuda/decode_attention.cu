#include "kernels/decode_attention.cuh"

namespace pydstp {

int decode_attention_cuda(const DecodeAttentionParams& p, void* stream) {
  return launch_decode_attention(p, stream);
}

}  // namespace pydstp
