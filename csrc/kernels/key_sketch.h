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
//
// Keys lie in the order of the reserve, so that scoring it reads memory from end to end; blocks of
// 16 of them are transposed by words of 4 bytes, so that a vector holds the same channels of each.
// At 16 bits there is no copy: the sketch is the key itself, in the arena.
struct KeySketch {
  uint8_t* codes;        // [max_batch, sketch_blocks, num_kv_heads, sketch_head_bytes / 4, 16, 4]
  float* scales;         // [max_batch, sketch_blocks, num_kv_heads, 16]
  float* channel_scale;  // [max_batch, num_kv_heads, head_dim / 2], positive
  int32_t bits;          // 2, 4, 8, or 16
};

constexpr int64_t kSketchBlock = 16;  // keys

// Of one head of one key: whole words.
static inline PYDSTP_HOST_DEVICE int64_t sketch_head_bytes(int64_t bits, int64_t head_dim) {
  return bits > 8 ? 0 : ceil_div(head_dim * bits, 32) * 4;
}

// Of a sequence: as many entries as there are visual slots.
static inline PYDSTP_HOST_DEVICE int64_t sketch_blocks(const KvArena& arena) {
  return ceil_div(arena.visual_capacity, kSketchBlock);
}

// Block `block` of a sequence and KV head: how many of them lie before it.
static inline PYDSTP_HOST_DEVICE int64_t sketch_place(const KvArena& arena, int64_t seq,
                                                      int64_t block, int64_t kv) {
  return (seq * sketch_blocks(arena) + block) * arena.num_kv_heads + kv;
}

// Where the codes of one entry and KV head begin. Its byte j is at byte_offset(j).
static inline PYDSTP_HOST_DEVICE uint8_t* sketch_codes(const KeySketch& sketch,
                                                       const KvArena& arena, int64_t seq,
                                                       int64_t entry, int64_t kv) {
  const int64_t bytes = sketch_head_bytes(sketch.bits, arena.head_dim);
  return sketch.codes + sketch_place(arena, seq, entry / kSketchBlock, kv) * kSketchBlock * bytes +
         entry % kSketchBlock * 4;
}

static inline PYDSTP_HOST_DEVICE int64_t byte_offset(int64_t j) {
  return j / 4 * 4 * kSketchBlock + j % 4;
}

static inline PYDSTP_HOST_DEVICE float* sketch_scale_at(const KeySketch& sketch,
                                                        const KvArena& arena, int64_t seq,
                                                        int64_t entry, int64_t kv) {
  return sketch.scales + sketch_place(arena, seq, entry / kSketchBlock, kv) * kSketchBlock +
         entry % kSketchBlock;
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

// Writes codes and scales of some slots of a sequence, with the channel_scale that is there: those
// of slots[i] become entry first_entry + i.
struct SketchKeysParams {
  KvArena arena;         // read
  KeySketch sketch;      // codes and scales are written
  const int32_t* slots;  // [num_slots] visual; -1: skipped
  int32_t* status;       // [1] or nullptr
  int64_t seq_idx, num_slots;
  int64_t first_entry;  // first_entry + num_slots <= visual_capacity
};

void sketch_scale_cpu(const SketchScaleParams& p, ThreadPool& pool);
void sketch_scale_simt(const SketchScaleParams& p);
int sketch_scale_cuda(const SketchScaleParams& p, void* stream);
void sketch_keys_cpu(const SketchKeysParams& p, ThreadPool& pool);
void sketch_keys_simt(const SketchKeysParams& p);
int sketch_keys_cuda(const SketchKeysParams& p, void* stream);

}  // namespace pydstp
