#include "kernels/key_sketch.cuh"

namespace pydstp {

int sketch_scale_cuda(const SketchScaleParams& p, void* stream) {
  return launch_sketch_scale(p, stream);
}
int sketch_keys_cuda(const SketchKeysParams& p, void* stream) {
  return launch_sketch_keys(p, stream);
}

}  // namespace pydstp
