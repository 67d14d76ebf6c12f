#include "kernels/key_sketch.cuh"

namespace pydstp {

void sketch_scale_simt(const SketchScaleParams& p) { launch_sketch_scale(p, nullptr); }
void sketch_keys_simt(const SketchKeysParams& p) { launch_sketch_keys(p, nullptr); }

}  // namespace pydstp
