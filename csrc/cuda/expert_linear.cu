#include "kernels/expert_linear.cuh"

namespace pydstp {

int expert_linear_cuda(const ExpertLinearParams& p, void* stream) {
  return launch_expert_linear(p, stream);
}
int quantised_expert_linear_cuda(const QuantisedExpertLinearParams& p, void* stream) {
  return launch_quantised_expert_linear(p, stream);
}

}  // namespace pydstp
