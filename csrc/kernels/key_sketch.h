// A copy of the visual keys in few bits: enough to tell which of them attention would pick.
#pragma once

#include <cmath>

#include "common/math.h"
#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// A key k of KV head h is stored as codes u in [0, 2^bits) and one scale, so that
//   k[d] ~ (2 u[d] - (2^bits - 1)) * scale * channel_scale[h, d % (head_dim / 2)].
// There is no code for zero: levels lie evenly, on both sides of it. The two channels of a RoPE
// pair share a channel scale, since rotation moves a key's size between them.
//
// Byte j of a head's codes holds channels j, j + n, ... (n = sketch_head_bytes), lowest bits first.
// At 16 bits there is no copy: the sketch is the key itself, in the arena.
struct KeySketch {
  uint8_t* codes;        // [max_batch, visual_capacity, num_kv_heads, sketch_head_bytes]
  float* scales;         // [max_batch, visual_capacity, num_kv_heads]
  float* channel_scale;  // [max_batch, num_kv_heads, head_dim / 2], positive
  int32_t bits;          // 2, 4, 8, or 16
};

static inline PYDSTP_HOST_DEVICE int64_t sketch_head_bytes(int64_t bits, int64_t head_dim) {
  return bits > 8 ? 0 : ceil_div(head_dim * bits, 8);
}

// The scale of a key whose values (after channel_scale) have this maximum and this mean square: the
// largest value is stored exactly; with two bits only, the levels are the best ones for a normal
// distribution.
static inline PYDSTP_HOST_DEVICE float sketch_scale_of(int64_t bits, float maximum, double mean) {
  constexpr double kHalfStep = 0.49785;  // of a uniform quantiser with 4 levels, sigma 1
  if (bits == 2) return static_cast<float>(kHalfStep * sqrt(mean));
  return maximum / static_cast<float>((1 << bits) - 1);
}

// The code of a value in steps of 2 * scale: the steps below it, from the lowest level on.
static inline PYDSTP_HOST_DEVICE int32_t sketch_code(int64_t bits, float steps) {
  const float half = static_cast<float>(1 << (bits - 1));
  const float low = steps > -half ? steps : -half;  // NaN gives the lowest
  const float bounded = low < half ? low : half - 0.5f;
  const int32_t whole = static_cast<int32_t>(bounded);
  return whole - (static_cast<float>(whole) > bounded) + static_cast<int32_t>(half);
}

enum SketchStatistic : int32_t { kMaxAbs = 0, kRms = 1 };

// channel_scale[h, i] of a sequence becomes the maximum of |k|, or its root mean square, over both
// channels of pair i of the keys of some slots; 1 where that is 0 or not finite.
struct SketchScaleParams {
  KvArena arena;         // read
  KeySketch sketch;      // channel_scale is written
  const int32_t* slots;  // [num_slots] visual; -1: skipped
  int32_t* status;       // [1] or nullptr
  int64_t seq_idx, num_slots;
  int32_t statistic;  // SketchStatistic
};

// Writes codes and scales of some slots of a sequence, with the channel_scale that is there.
struct SketchKeysParams {
  KvArena arena;         // read
  KeySketch sketch;      // codes and scales are written
  const int32_t* slots;  // [num_slots] visual; -1: skipped; no slot comes twice
  int32_t* status;       // [1] or nullptr
  int64_t seq_idx, num_slots;
};

void sketch_scale_cpu(const SketchScaleParams& p, ThreadPool& pool);
void sketch_scale_simt(const SketchScaleParams& p);
void sketch_keys_cpu(const SketchKeysParams& p, ThreadPool& pool);
void sketch_keys_simt(const SketchKeysParams& p);

}  // namespace pydstp
