// store_kv and gather_kv: copies of whole rows, the same code for every instruction set.
#include <cstring>

#include "common/math.h"
#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

constexpr int64_t kBytesPerPart = 65536;

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Bytes of K (or V) of one row: half a row.
int64_t half_row_bytes(const KvArena& arena) {
  return arena.num_kv_heads * arena.head_dim * element_bytes(arena.dtype);
}

void report(int32_t* status, int32_t bit) {
  if (status) __atomic_fetch_or(status, bit, __ATOMIC_RELAXED);
}

// The row of a slot, or nullptr when the slot names none.
char* find_row(const KvArena& arena, int64_t seq, int64_t slot) {
  const int64_t row_bytes = 2 * half_row_bytes(arena);
  if (is_index(slot, arena.visual_capacity)) {
    return static_cast<char*>(arena.visual) + (seq * arena.visual_capacity + slot) * row_bytes;
  }
  const int64_t text_slot = slot - arena.visual_capacity;
  if (!is_index(text_slot, arena.text_capacity)) return nullptr;
  return static_cast<char*>(arena.text) + (seq * arena.text_capacity + text_slot) * row_bytes;
}

void store_token(const StoreKvParams& p, int64_t token) {
  const int64_t seq = p.seq_idx[token], slot = p.slot_idx[token];
  if (seq == -1 || slot == -1) return;
  if (!is_index(seq, p.arena.max_batch)) return report(p.status, kBadSequence);
  char* row = find_row(p.arena, seq, slot);
  if (!row) return report(p.status, kBadSlot);
  const int64_t size = element_bytes(p.arena.dtype), bytes = half_row_bytes(p.arena);
  memcpy(row, static_cast<const char*>(p.k) + token * p.k_stride * size, bytes);
  memcpy(row + bytes, static_cast<const char*>(p.v) + token * p.v_stride * size, bytes);
}

void gather_row(const GatherKvParams& p, int64_t i) {
  const int64_t bytes = 2 * half_row_bytes(p.arena);
  char* out = static_cast<char*>(p.out) + i * bytes;
  const char* row = find_row(p.arena, p.seq_idx, p.slots[i]);
  if (row) {
    memcpy(out, row, bytes);
  } else {
    memset(out, 0, bytes);
    if (p.slots[i] != -1) report(p.status, kBadSlot);
  }
}

int64_t rows_per_part(const KvArena& arena) {
  return ceil_div(kBytesPerPart, max_of(1, half_row_bytes(arena)));
}

}  // namespace

void copy_into_arena(const StoreKvParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.num_tokens, rows_per_part(p.arena), [&p](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) store_token(p, token);
  });
}

void copy_from_arena(const GatherKvParams& p, ThreadPool& pool) {
  pool.parallel_for(0, p.num_slots, rows_per_part(p.arena), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) gather_row(p, i);
  });
}

}  // namespace pydstp
