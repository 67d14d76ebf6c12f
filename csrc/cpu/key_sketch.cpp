// sketch_scale and sketch_keys. Every tier writes the same codes and scales.
#include "kernels/key_sketch.h"

#include "common/thread_pool.h"
#include "cpu/tier.h"
#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

constexpr int64_t kPairsTogether = 64;
constexpr int64_t kElementsPerPart = 16384;

void report(int32_t* status, int32_t bits) {
  if (status && bits) __atomic_fetch_or(status, bits, __ATOMIC_RELAXED);
}

float magnitude(float x) { return x < 0 ? -x : x; }

// The key of a slot and KV head; nullptr if the slot is out of range.
template <typename T, typename Params>
const T* find_key(const Params& p, int64_t slot, int64_t kv) {
  const KvArena& arena = p.arena;
  if (!is_index(slot, arena.visual_capacity)) {
    if (slot != -1) report(p.status, kBadSlot);
    return nullptr;
  }
  const int64_t row = p.seq_idx * arena.visual_capacity + slot;
  return static_cast<const T*>(arena.visual) + (row * 2 * arena.num_kv_heads + kv) * arena.head_dim;
}

// Pairs [begin, begin + n) of one KV head.
template <typename T>
void measure_pairs(const SketchScaleParams& p, int64_t kv, int64_t begin, int64_t n) {
  const int64_t pairs = p.arena.head_dim / 2;
  float maxima[kPairsTogether] = {};
  double squares[kPairsTogether] = {}, count = 0;
  for (int64_t i = 0; i < p.num_slots; ++i) {
    const T* key = find_key<T>(p, p.slots[i], kv);
    if (!key) continue;
    for (int64_t j = 0; j < n; ++j) {
      const float low = to_float(key[begin + j]), high = to_float(key[begin + j + pairs]);
      const float larger = magnitude(low) > magnitude(high) ? magnitude(low) : magnitude(high);
      maxima[j] = larger > maxima[j] ? larger : maxima[j];
      squares[j] += static_cast<double>(low) * low + static_cast<double>(high) * high;
    }
    count += 2;
  }
  float* out = p.sketch.channel_scale + (p.seq_idx * p.arena.num_kv_heads + kv) * pairs + begin;
  for (int64_t j = 0; j < n; ++j) {
    const double rms = count > 0 ? __builtin_sqrt(squares[j] / count) : 0;
    const float scale = p.statistic == kRms ? static_cast<float>(rms) : maxima[j];
    out[j] = scale > 0 && scale - scale == 0 ? scale : 1.0f;
  }
}

template <typename T>
void measure(const SketchScaleParams& p, ThreadPool& pool) {
  const int64_t pairs = p.arena.head_dim / 2, blocks = ceil_div(pairs, kPairsTogether);
  const int64_t grain = ceil_div(kElementsPerPart, max_of(1, p.num_slots * kPairsTogether));
  pool.parallel_for(0, p.arena.num_kv_heads * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * kPairsTogether;
      measure_pairs<T>(p, i / blocks, first, min_of(kPairsTogether, pairs - first));
    }
  });
}

// Channels [d, d + n) of a key, in units of their channel scales; n <= kLanes. The other lanes are
// NaN.
template <typename T>
F32 scaled_channels(const T* key, const float* channel_scale, int64_t pairs, int64_t d, int64_t n) {
  const int64_t whole = min_of(n, pairs - d % pairs);
  F32 x = load_first(key + d, whole) / load_first(channel_scale + d % pairs, whole);
  for (int64_t i = whole; i < n; ++i) x[i] = to_float(key[d + i]) / channel_scale[(d + i) % pairs];
  return x;
}

// The scale of one key.
template <typename T>
float measure_key(const SketchKeysParams& p, const T* key, const float* channel_scale) {
  const int64_t head_dim = p.arena.head_dim, pairs = head_dim / 2;
  F32 peaks = {};
  double squares = 0;
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t i = 0; i < pairs; i += kLanes) {
      const int64_t n = min_of(kLanes, pairs - i);
      const F32 x = scaled_channels(key, channel_scale, pairs, half * pairs + i, n);
      peaks = larger(x < 0.0f ? -x : x, peaks);  // lanes past the end are NaN, which is not larger
      for (int64_t j = 0; j < n && p.sketch.bits == 2; ++j) {
        squares += static_cast<double>(x[j]) * x[j];
      }
    }
  }
  return sketch_scale_of(p.sketch.bits, max_lanes(peaks), squares / static_cast<double>(head_dim));
}

I32 codes_of(int64_t bits, F32 steps) {
  const F32 half = splat(static_cast<float>(1 << (bits - 1)));
  const F32 low = steps > -half ? steps : -half;
  const F32 bounded = low < half ? low : half - 0.5f;
  const I32 whole = __builtin_convertvector(bounded, I32);
  return whole + (I32)(__builtin_convertvector(whole, F32) > bounded) + (1 << (bits - 1));
}

// One key, with channel_scale [head_dim / 2]; codes: as sketch_codes gives it. Returns its scale.
template <typename T>
float write_codes(const SketchKeysParams& p, const T* key, const float* channel_scale,
                  uint8_t* codes) {
  typedef uint8_t Lanes __attribute__((vector_size(kLanes)));
  const int64_t head_dim = p.arena.head_dim, pairs = head_dim / 2, bits = p.sketch.bits;
  const int64_t bytes = sketch_head_bytes(bits, head_dim);
  const float scale = measure_key(p, key, channel_scale);
  const float inverse = scale > 0 ? 0.5f / scale : 0.0f;
  for (int64_t j = 0; j < bytes; j += kLanes) {
    Lanes lanes = {};
    for (int64_t d = j, shift = 0; d < head_dim; d += bytes, shift += bits) {
      const int64_t n = min_of(min_of(kLanes, bytes - j), head_dim - d);
      const I32 found = codes_of(bits, scaled_channels(key, channel_scale, pairs, d, n) * inverse);
      lanes |= __builtin_convertvector(found << static_cast<int32_t>(shift), Lanes);
    }
    for (int64_t i = 0; i < min_of(kLanes, bytes - j); i += 4) {
      memcpy(codes + byte_offset(j + i), reinterpret_cast<const char*>(&lanes) + i, 4);
    }
  }
  return scale;
}

// Entry first_entry + i.
template <typename T>
void write_entry(const SketchKeysParams& p, int64_t i) {
  const KvArena& arena = p.arena;
  const int64_t entry = p.first_entry + i;
  for (int64_t kv = 0; kv < arena.num_kv_heads; ++kv) {
    const T* key = find_key<T>(p, p.slots[i], kv);
    if (!key) return;
    const int64_t head = p.seq_idx * arena.num_kv_heads + kv;
    const float* channel_scale = p.sketch.channel_scale + head * (arena.head_dim / 2);
    *sketch_scale_at(p.sketch, arena, p.seq_idx, entry, kv) =
        write_codes(p, key, channel_scale, sketch_codes(p.sketch, arena, p.seq_idx, entry, kv));
  }
}

template <typename T>
void write_keys(const SketchKeysParams& p, ThreadPool& pool) {
  const int64_t size = max_of(1, p.arena.num_kv_heads * p.arena.head_dim);
  pool.parallel_for(0, p.num_slots, ceil_div(kElementsPerPart, size),
                    [&p](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) write_entry<T>(p, i);
                    });
}

}  // namespace

void sketch_scale(const SketchScaleParams& p, ThreadPool& pool) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return measure<float>(p, pool);
    case DType::kBFloat16:
      return measure<BFloat16>(p, pool);
  }
}

void sketch_keys(const SketchKeysParams& p, ThreadPool& pool) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return write_keys<float>(p, pool);
    case DType::kBFloat16:
      return write_keys<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
