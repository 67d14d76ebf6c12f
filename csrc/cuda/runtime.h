// What the rest asks of the CUDA runtime, without its headers. Links only into builds with CUDA.
#pragma once

#include <string>

namespace pydstp {

// The status of a look for GPUs: 0 if there is one, 35 without a driver, 100 with one but no GPU.
int cuda_status();

// "cudaErrorInsufficientDriver: CUDA driver version is insufficient for ..." for 35.
std::string cuda_error(int status);

// What this build has machine code for, as CMake writes it: "80-real 90a-real".
std::string cuda_architectures();

}  // namespace pydstp
