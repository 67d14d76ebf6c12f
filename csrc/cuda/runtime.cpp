#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

namespace pydstp {

int cuda_status() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess && count == 0 ? cudaErrorNoDevice : status;
}

std::string cuda_error(int status) {
  const auto error = static_cast<cudaError_t>(status);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

std::string cuda_architectures() { return PYDSTP_CUDA_ARCHITECTURES; }

}  // namespace pydstp
