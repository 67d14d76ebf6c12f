// Two passes. First every (row, chunk) is one work item: the softmax of its entries alone, for all
// heads, left in the workspace as (sum of p * v, maximum, sum of p). Then every (row, head) merges
// its chunks in order. An item reads whole rows of the cache, each once for all its query heads.
#include "kernels/decode_attention.h"

#include "common/thread_pool.h"
#include "cpu/attention_chunk.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

// What one row of the batch reads; lengths are already within their capacities.
struct RowView {
  int64_t seq;
  const int32_t* list;
  int64_t list_len, text_len;
  int32_t status;

  int64_t list_chunks() const { return ceil_div(list_len, kAttentionChunk); }
  int64_t num_chunks() const { return list_chunks() + ceil_div(text_len, kAttentionChunk); }
};

int64_t bounded(int64_t len, int64_t capacity, int32_t* status) {
  if (len < 0 || len > capacity) *status |= kBadLength;
  return clamp_to(len, 0, capacity);
}

RowView view_row(const DecodeAttentionParams& p, int64_t row) {
  RowView view = {p.seq_idx[row], nullptr, 0, 0, 0};
  if (view.seq == -1) return view;
  if (!is_index(view.seq, p.arena.max_batch)) {
    view.status = kBadSequence;
    return view;
  }
  view.text_len = bounded(p.text_len[view.seq], p.arena.text_capacity, &view.status);
  const int64_t group = p.layer_to_group[view.seq * p.num_layers + p.layer_idx];
  if (!is_index(group, p.num_groups)) {
    view.status |= kBadLayer;
    return view;
  }
  const int64_t list_idx = view.seq * p.num_groups + group;
  view.list = p.visible_indices + list_idx * p.list_capacity;
  view.list_len = bounded(p.visible_len[list_idx], p.list_capacity, &view.status);
  return view;
}

void report(const DecodeAttentionParams& p, int32_t bits) {
  if (p.status && bits) __atomic_fetch_or(p.status, bits, __ATOMIC_RELAXED);
}

// The cache rows of one chunk, without the list entries that name none.
template <typename T>
int find_rows(const DecodeAttentionParams& p, const RowView& view, int64_t chunk,
              const T* (&rows)[kAttentionChunk]) {
  const KvArena& arena = p.arena;
  const int64_t row_size = 2 * arena.num_kv_heads * arena.head_dim;
  const bool is_text = chunk >= view.list_chunks();
  const int64_t first = (is_text ? chunk - view.list_chunks() : chunk) * kAttentionChunk;
  const int64_t end = min_of(first + kAttentionChunk, is_text ? view.text_len : view.list_len);
  const int64_t capacity = is_text ? arena.text_capacity : arena.visual_capacity;
  const T* base =
      static_cast<const T*>(is_text ? arena.text : arena.visual) + view.seq * capacity * row_size;
  int count = 0;
  for (int64_t i = first; i < end; ++i) {
    const int64_t slot = is_text ? i : view.list[i];
    if (is_index(slot, capacity)) {
      rows[count++] = base + slot * row_size;
    } else {
      report(p, kBadSlot);
    }
  }
  return count;
}

float* partial_of(const DecodeAttentionParams& p, int64_t row, int64_t chunk, int64_t head) {
  const int64_t entry = (row * max_attention_chunks(p) + chunk) * p.num_heads + head;
  return p.workspace + entry * (p.arena.head_dim + 2);
}

template <typename T>
void attend_chunk(const DecodeAttentionParams& p, const RowView& view, int64_t row, int64_t chunk,
                  int64_t kv_begin, int64_t kv_end) {
  ChunkView<T> c;
  c.num_rows = find_rows(p, view, chunk, c.rows);
  c.head_dim = p.arena.head_dim;
  c.v_offset = p.arena.num_kv_heads * c.head_dim;
  c.scale = p.scale;
  const int64_t group = p.num_heads / p.arena.num_kv_heads;
  for (int64_t kv = kv_begin; kv < kv_end; kv += kKvHeadsTogether) {
    c.kv_begin = kv;
    c.num_kv = min_of(kKvHeadsTogether, kv_end - kv);
    const T* q = static_cast<const T*>(p.q) + row * p.q_stride + kv * group * c.head_dim;
    attend_heads(c, QueryHeads<T>{q, partial_of(p, row, chunk, kv * group), group});
  }
}

// Items [begin, end) of all (row, chunk, KV head block) triples, in that order.
template <typename T>
void attend_items(const DecodeAttentionParams& p, int64_t blocks, int64_t begin, int64_t end) {
  const int64_t heads_per_block = ceil_div(p.arena.num_kv_heads, blocks);
  int64_t row_begin = 0;
  for (int64_t row = 0; row < p.batch && row_begin < end; ++row) {
    const RowView view = view_row(p, row);
    const int64_t row_end = row_begin + view.num_chunks() * blocks;
    for (int64_t i = max_of(begin, row_begin); i < min_of(end, row_end); ++i) {
      const int64_t chunk = (i - row_begin) / blocks;
      const int64_t kv_begin = (i - row_begin) % blocks * heads_per_block;
      const int64_t kv_end = min_of(kv_begin + heads_per_block, p.arena.num_kv_heads);
      attend_chunk<T>(p, view, row, chunk, kv_begin, kv_end);
    }
    row_begin = row_end;
  }
}

template <typename T>
void merge_heads(const DecodeAttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / p.num_heads, head = i % p.num_heads;
    const int64_t stride = p.num_heads * (p.arena.head_dim + 2);
    const int64_t chunks = view_row(p, row).num_chunks();
    merge_chunks(partial_of(p, row, 0, head), chunks, stride, p.arena.head_dim,
                 static_cast<T*>(p.out) + i * p.arena.head_dim);
  }
}

template <typename T>
void attend(const DecodeAttentionParams& p, ThreadPool& pool) {
  int64_t chunks = 0;
  for (int64_t row = 0; row < p.batch; ++row) {
    const RowView view = view_row(p, row);
    report(p, view.status);
    chunks += view.num_chunks();
  }
  const bool is_few = chunks < 4 * pool.num_threads();
  const int64_t blocks = is_few ? p.arena.num_kv_heads : 1;
  const int64_t item_size =
      kAttentionChunk * 2 * ceil_div(p.arena.num_kv_heads, blocks) * p.arena.head_dim;
  pool.parallel_for(
      0, chunks * blocks, ceil_div(kElementsPerPart, max_of(1, item_size)),
      [&p, blocks](int64_t begin, int64_t end) { attend_items<T>(p, blocks, begin, end); });
  const int64_t merge_size = ceil_div(chunks, max_of(1, p.batch)) * p.arena.head_dim;
  pool.parallel_for(0, p.batch * p.num_heads, ceil_div(kElementsPerPart, max_of(1, merge_size)),
                    [&p](int64_t begin, int64_t end) { merge_heads<T>(p, begin, end); });
}

}  // namespace

void decode_attention(const DecodeAttentionParams& p, ThreadPool& pool) {
  switch (p.arena.dtype) {
    case DType::kFloat32:
      return attend<float>(p, pool);
    case DType::kBFloat16:
      return attend<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
