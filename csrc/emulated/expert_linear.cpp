#include "kernels/expert_linear.cuh"

namespace pydstp {

void expert_linear_simt(const ExpertLinearParams& p) { launch_expert_linear(p, nullptr); }
void quantised_expert_linear_simt(const QuantisedExpertLinearParams& p) {
  launch_quantised_expert_linear(p, nullptr);
}

}  // namespace pydstp
