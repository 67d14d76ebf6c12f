// sketch_scale: one thread per (KV head, RoPE pair), which walks all slots; neighbours read
// neighbouring channels. sketch_keys: one block per (slot, KV head); a thread writes whole bytes.
#pragma once

#include "kernels/block_sum.cuh"
#include "kernels/key_sketch.h"
#include "kernels/kv_arena.cuh"

namespace pydstp {

constexpr int kSketchThreads = 64;

// The key of a slot and KV head; nullptr if the slot is out of range.
template <typename T, typename Params>
PYDSTP_DEVICE const T* sketched_key(const Params& p, int64_t slot, int64_t kv) {
  if (is_index(slot, p.arena.visual_capacity)) {
    return find_row<T>(p.arena, p.seq_idx, slot) + kv * p.arena.head_dim;
  }
  if (slot != -1) set_status(p.status, kBadSlot);
  return nullptr;
}

template <typename T>
PYDSTP_KERNEL sketch_scale_kernel(SketchScaleParams p) {
  const int64_t pairs = p.arena.head_dim / 2;
  const int64_t i = block_x() * num_threads() + thread_idx();
  if (i >= p.arena.num_kv_heads * pairs) return;
  const int64_t kv = i / pairs, pair = i % pairs;
  float maximum = 0.0f;
  double squares = 0, count = 0;
  for (int64_t entry = 0; entry < p.num_slots; ++entry) {
    const T* key = sketched_key<T>(p, p.slots[entry], kv);
    if (!key) continue;
    const float low = to_float(key[pair]), high = to_float(key[pair + pairs]);
    maximum = fmaxf(maximum, fmaxf(fabsf(low), fabsf(high)));
    squares += static_cast<double>(low) * low + static_cast<double>(high) * high;
    count += 2;
  }
  const double mean = count > 0 ? squares / count : 0;
  const float scale = p.statistic == kRms ? static_cast<float>(sqrt(mean)) : maximum;
  float* out = p.sketch.channel_scale + p.seq_idx * p.arena.num_kv_heads * pairs + i;
  *out = scale > 0.0f && scale < INFINITY ? scale : 1.0f;
}

// scratch: [num_threads]; thread 0's result counts.
template <typename T>
PYDSTP_DEVICE float block_key_scale(const SketchKeysParams& p, const T* key,
                                    const float* channel_scale, float* scratch, double* doubles) {
  const int64_t head_dim = p.arena.head_dim;
  float maximum = 0.0f;
  double squares = 0;
  for (int64_t d = thread_idx(); d < head_dim; d += num_threads()) {
    const float value = to_float(key[d]) / channel_scale[d % (head_dim / 2)];
    maximum = fmaxf(maximum, fabsf(value));
    squares += static_cast<double>(value) * value;
  }
  doubles[thread_idx()] = squares;
  maximum = block_max(maximum, scratch);
  squares = 0;
  for (int i = 0; i < num_threads(); ++i) squares += doubles[i];
  return sketch_scale_of(p.sketch.bits, maximum, squares / static_cast<double>(head_dim));
}

template <typename T>
PYDSTP_KERNEL sketch_keys_kernel(SketchKeysParams p) {
  PYDSTP_SHARED(double, doubles);  // [num_threads], then scratch [num_warps]
  const int64_t slot = p.slots[block_x()], kv = block_y(), head_dim = p.arena.head_dim;
  const int64_t entry = p.first_entry + block_x();
  const T* key = sketched_key<T>(p, slot, kv);
  if (!key) return;  // the whole block
  const int64_t kv_heads = p.arena.num_kv_heads, pairs = head_dim / 2, bits = p.sketch.bits;
  const float* channel_scale = p.sketch.channel_scale + (p.seq_idx * kv_heads + kv) * pairs;
  float* scratch = reinterpret_cast<float*>(doubles + num_threads());
  const float scale = block_key_scale(p, key, channel_scale, scratch, doubles);
  const float inverse = scale > 0.0f ? 0.5f / scale : 0.0f;
  const int64_t bytes = sketch_head_bytes(bits, head_dim);
  uint8_t* codes = sketch_codes(p.sketch, p.arena, p.seq_idx, entry, kv);
  for (int64_t j = thread_idx(); j < bytes; j += num_threads()) {
    int32_t byte = 0;
    for (int64_t d = j, shift = 0; d < head_dim; d += bytes, shift += bits) {
      const float value = to_float(key[d]) / channel_scale[d % pairs];
      byte |= sketch_code(bits, value * inverse) << shift;
    }
    codes[byte_offset(j)] = static_cast<uint8_t>(byte);
  }
  if (thread_idx() == 0) *sketch_scale_at(p.sketch, p.arena, p.seq_idx, entry, kv) = scale;
}

inline int launch_sketch_scale(const SketchScaleParams& p, void* stream) {
  const int64_t pairs = p.arena.num_kv_heads * (p.arena.head_dim / 2);
  const Grid grid{ceil_div(pairs, kSketchThreads)};
  return p.arena.dtype == DType::kFloat32
             ? PYDSTP_LAUNCH(sketch_scale_kernel<float>, grid, kSketchThreads, 0, stream, p)
             : PYDSTP_LAUNCH(sketch_scale_kernel<BFloat16>, grid, kSketchThreads, 0, stream, p);
}

inline int launch_sketch_keys(const SketchKeysParams& p, void* stream) {
  constexpr int64_t kShared =
      kSketchThreads * sizeof(double) + kSketchThreads / kWarpSize * sizeof(float);
  const Grid grid{p.num_slots, p.arena.num_kv_heads};
  return p.arena.dtype == DType::kFloat32
             ? PYDSTP_LAUNCH(sketch_keys_kernel<float>, grid, kSketchThreads, kShared, stream, p)
             : PYDSTP_LAUNCH(sketch_keys_kernel<BFloat16>, grid, kSketchThreads, kShared, stream,
                             p);
}

}  // namespace pydstp
