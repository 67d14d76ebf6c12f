#include "kernels/quantised.cuh"

#include "kernels/quantised_linear.cuh"

namespace pydstp {

void quantise_rows_simt(const QuantiseRowsParams& p) { launch_quantise_rows(p, nullptr); }
void dequantise_rows_simt(const DequantiseRowsParams& p) { launch_dequantise_rows(p, nullptr); }
void quantised_linear_simt(const QuantisedLinearParams& p) { launch_quantised_linear(p, nullptr); }

}  // namespace pydstp
