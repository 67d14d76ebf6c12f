#include "kernels/store_kv.cuh"

namespace pydstp {

void store_kv_simt(const StoreKvParams& p) { launch_store_kv(p, nullptr); }

}  // namespace pydstp
