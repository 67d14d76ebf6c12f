#include "kernels/quantised.cuh"
#include "kernels/quantised_linear.cuh"

namespace pydstp {

int quantise_rows_cuda(const QuantiseRowsParams& p, void* stream) {
  return launch_quantise_rows(p, stream);
}
int dequantise_rows_cuda(const DequantiseRowsParams& p, void* stream) {
  return launch_dequantise_rows(p, stream);
}
int quantised_linear_cuda(const QuantisedLinearParams& p, void* stream) {
  return launch_quantised_linear(p, stream);
}

}  // namespace pydstp
