// mean_kv: each work item is a block of columns of one row, so that sums stay in registers or L1.
#include "kernels/mean_kv.h"

#include "common/math.h"
#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

constexpr int64_t kBlock = 256;  // columns

void report(const MeanKvParams& p, int32_t bits) {
  if (p.status && bits) __atomic_fetch_or(p.status, bits, __ATOMIC_RELAXED);
}

// Whether a row of the batch writes something.
bool has_mean(const MeanKvParams& p, int64_t row) {
  const int64_t seq = p.seq_idx[row];
  const bool is_known = is_index(seq, p.arena.max_batch);
  if (!is_known && seq != -1) report(p, kBadSequence);
  if (!is_known) return false;
  const int64_t len = p.index_len[seq], slot = p.dst_slot[seq];
  if (len < 0 || len > p.list_capacity) report(p, kBadLength);
  if (slot == -1 || len <= 0) return false;
  const bool is_slot = is_index(slot, p.arena.visual_capacity);
  if (!is_slot) report(p, kBadSlot);
  return is_slot;
}

// Columns [begin, begin + n) of one sequence.
template <typename T>
void average_block(const MeanKvParams& p, int64_t seq, int64_t begin, int64_t n) {
  const int64_t row_size = 2 * p.arena.num_kv_heads * p.arena.head_dim;
  T* rows = static_cast<T*>(p.arena.visual) + seq * p.arena.visual_capacity * row_size + begin;
  const int32_t* list = p.indices + seq * p.list_capacity;
  const int64_t len = min_of(p.index_len[seq], p.list_capacity);
  float sums[kBlock] = {};
  int64_t count = 0;
  for (int64_t i = 0; i < len; ++i) {
    if (!is_index(list[i], p.arena.visual_capacity)) {
      report(p, kBadSlot);
      continue;
    }
    const T* row = rows + list[i] * row_size;
    for (int64_t j = 0; j < n; ++j) sums[j] += to_float(row[j]);
    ++count;
  }
  T* out = rows + p.dst_slot[seq] * row_size;
  for (int64_t j = 0; count && j < n; ++j) assign(out[j], sums[j] / static_cast<float>(count));
}

template <typename T>
void average(const MeanKvParams& p, ThreadPool& pool) {
  const int64_t row_size = 2 * p.arena.num_kv_heads * p.arena.head_dim;
  const int64_t blocks = ceil_div(row_size, kBlock);
  int64_t num_rows = 0;
  for (int64_t row = 0; row < p.batch; ++row) num_rows += has_mean(p, row);
  if (num_rows == 0) return;
  pool.parallel_for(0, p.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, first = i % blocks * kBlock;
      const int64_t n = min_of(kBlock, row_size - first);
      if (has_mean(p, row)) average_block<T>(p, p.seq_idx[row], first, n);
    }
  });
}

}  // namespace

void average_rows(const MeanKvParams& p, ThreadPool& pool) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return average<float>(p, pool);
    case DType::kBFloat16:
      return average<BFloat16>(p, pool);
  }
}

}  // namespace pydstp
