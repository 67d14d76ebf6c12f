#include "kernels/sample_tokens.cuh"

namespace pydstp {

void sample_tokens_simt(const SampleTokensParams& p) { launch_sample_tokens(p, nullptr); }

}  // namespace pydstp
