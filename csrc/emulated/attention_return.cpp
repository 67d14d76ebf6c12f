#include "kernels/attention_return.cuh"

namespace pydstp {

void attention_return_simt(const AttentionReturnParams& p) { launch_attention_return(p, nullptr); }

}  // namespace pydstp
