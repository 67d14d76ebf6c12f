#include "kernels/store_kv.cuh"

namespace pydstp {

int store_kv_cuda(const StoreKvParams& p, void* stream) { return launch_store_kv(p, stream); }

}  // namespace pydstp
