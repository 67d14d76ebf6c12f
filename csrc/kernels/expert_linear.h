// Products of rows with a matrix each, chosen among several by an index on the device.
#pragma once

#include "kernels/linear.h"
#include "kernels/quantised.h"

namespace pydstp {

class ThreadPool;

// Row i of the result is row i of x @ weight[expert_idx[i]]^T, with the bits of `linear`; zeros
// where there is no such matrix.
struct ExpertLinearParams {
  LinearParams rows;          // weight: [num_experts, out_features, in_features]; no bias
  const int32_t* expert_idx;  // [num_tokens]
  int64_t num_experts;
};

// The same with the bits of `quantised_linear`.
struct QuantisedExpertLinearParams {
  QuantisedLinearParams rows;  // weight: the first of num_experts matrices, one behind the other
  const int32_t* expert_idx;   // [num_tokens]
  int64_t num_experts;
};

void expert_linear_cpu(const ExpertLinearParams& p, ThreadPool& pool);
void quantised_expert_linear_cpu(const QuantisedExpertLinearParams& p, ThreadPool& pool);

void expert_linear_simt(const ExpertLinearParams& p);
void quantised_expert_linear_simt(const QuantisedExpertLinearParams& p);

int expert_linear_cuda(const ExpertLinearParams& p, void* stream);
int quantised_expert_linear_cuda(const QuantisedExpertLinearParams& p, void* stream);

}  // namespace pydstp
