// What decode_attention does, with four steps between its two passes: q is folded into int8, every
// (row, chunk of its reserve) is scored, each row selects what returns, and returned rows become
// further chunks of the merge.
#include "kernels/attention_return.h"

#include "cpu/attention_pass.h"
#include "cpu/return_select.h"
#include "cpu/sketch_score.h"
#include "cpu/tier.h"

namespace pydstp {
namespace PYDSTP_TIER {
namespace {

// A row of the batch and its reserve; no reserve if nothing may return.
struct ReturnTask {
  RowView view;
  ReserveView reserve;
};

ReturnTask find_task(const AttentionReturnParams& p, int64_t row) {
  const DecodeAttentionParams& a = p.attention;
  ReturnTask task = {view_row(a, row), {}};
  if (!task.view.list) return task;
  const int64_t group = a.layer_to_group[task.view.seq * a.num_layers + a.layer_idx];
  task.reserve = view_reserve(p, task.view.seq, group, &task.view.status);
  return task;
}

template <typename T>
const T* query(const AttentionReturnParams& p, int64_t row, int64_t head) {
  const DecodeAttentionParams& a = p.attention;
  return static_cast<const T*>(a.q) + row * a.q_stride + head * a.arena.head_dim;
}

template <typename T>
void fold_row(const AttentionReturnParams& p, const ReturnTask& task, int64_t row) {
  const DecodeAttentionParams& a = p.attention;
  if (task.reserve.len == 0 || p.sketch.bits > 8) return;
  const ReturnRow r = return_row(p, row);
  const int64_t group = a.num_heads / a.arena.num_kv_heads, dim = a.arena.head_dim;
  const int64_t size = q8_size(p.sketch.bits, dim);
  for (int64_t h = 0; h < a.num_heads; ++h) {
    const int64_t place = task.view.seq * a.arena.num_kv_heads + h / group;
    int8_t* q8 = r.q8 + h * size;
    int32_t sum;
    const float largest = fold_channels(query<T>(p, row, h),
                                        p.sketch.channel_scale + place * (dim / 2), dim, q8, &sum);
    memset(q8 + dim, 0, static_cast<size_t>(size - dim));
    r.q_scale[h] = largest / 127.0f * a.scale;
    r.q_sum[h] = ((1 << p.sketch.bits) - 1) * sum;
  }
}

SketchChunk find_entries(const AttentionReturnParams& p, const ReturnTask& task, int64_t chunk) {
  SketchChunk c;
  const int64_t first = chunk * kAttentionChunk, capacity = p.attention.arena.visual_capacity;
  const int64_t count = min_of(kAttentionChunk, task.reserve.len - first);
  int64_t named = 0;
  for (int64_t i = 0; i < kAttentionChunk; ++i) {
    const bool is_slot = i < count && is_index(task.reserve.slots[first + i], capacity);
    c.bias[i] = is_slot ? 0.0f : -__builtin_inff();
    named += is_slot;
  }
  if (named < count) report(p.attention, kBadSlot);
  c.num_entries = named > 0 ? count : 0;
  return c;
}

// Logits [num_heads, kAttentionChunk] from codes.
template <int kBits>
void score_sketch(const AttentionReturnParams& p, const SketchChunk& c, const ReturnRow& r,
                  int64_t seq, int64_t first, float* logits) {
  const KvArena& arena = p.attention.arena;
  const int64_t kv_heads = arena.num_kv_heads, group = p.attention.num_heads / kv_heads;
  const int64_t bytes = sketch_head_bytes(kBits, arena.head_dim);
  for (int64_t i = 0; i < c.num_entries; i += kSketchBlock) {
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const int64_t h = kv * group;
      const SketchHead head = {sketch_codes(p.sketch, arena, seq, first + i, kv),
                               sketch_scale_at(p.sketch, arena, seq, first + i, kv),
                               r.q8 + h * 8 / kBits * bytes,
                               r.q_scale + h,
                               r.q_sum + h,
                               logits + h * kAttentionChunk + i,
                               bytes};
      score_group<kBits>(c, head, group, i);
    }
  }
}

// Logits [num_heads, kAttentionChunk] from the keys themselves.
template <typename T>
void score_keys_of(const AttentionReturnParams& p, const SketchChunk& c, const int32_t* slots,
                   int64_t seq, int64_t row, float* logits) {
  const KvArena& arena = p.attention.arena;
  const int64_t group = p.attention.num_heads / arena.num_kv_heads;
  ChunkView<T> view;
  view.num_rows = static_cast<int>(c.num_entries);
  view.head_dim = arena.head_dim;
  view.v_offset = view.v_dim = 0;
  view.scale = p.attention.scale;
  const int64_t row_size = 2 * arena.num_kv_heads * arena.head_dim;
  const T* base = static_cast<const T*>(arena.visual) + seq * arena.visual_capacity * row_size;
  for (int64_t i = 0; i < c.num_entries; ++i) {
    view.rows[i] = base + (c.bias[i] == 0.0f ? slots[i] : 0) * row_size;
  }
  for (int64_t kv = 0; kv < arena.num_kv_heads; kv += kKvHeadsTogether) {
    view.kv_begin = kv;
    view.num_kv = min_of(kKvHeadsTogether, arena.num_kv_heads - kv);
    const QueryHeads<T> heads = {query<T>(p, row, kv * group), nullptr,
                                 logits + kv * group * kAttentionChunk, group};
    score_exactly(c, view, heads);
  }
}

template <typename T>
void score_entries(const AttentionReturnParams& p, const ReturnTask& task, int64_t row,
                   const SketchChunk& c, int64_t first, float* logits) {
  const ReturnRow r = return_row(p, row);
  switch (p.sketch.bits) {
    case 2:
      return score_sketch<2>(p, c, r, task.view.seq, first, logits);
    case 4:
      return score_sketch<4>(p, c, r, task.view.seq, first, logits);
    case 8:
      return score_sketch<8>(p, c, r, task.view.seq, first, logits);
  }
  score_keys_of<T>(p, c, task.reserve.slots + first, task.view.seq, row, logits);
}

template <typename T>
void score_chunk(const AttentionReturnParams& p, const ReturnTask& task, int64_t row,
                 int64_t chunk) {
  const int64_t num_heads = p.attention.num_heads;
  const ReturnRow r = return_row(p, row);
  const SketchChunk c = find_entries(p, task, chunk);
  float* logits = r.logits + chunk * num_heads * kAttentionChunk;
  if (c.num_entries < kAttentionChunk) {
    for (int64_t i = 0; i < num_heads * kAttentionChunk; i += kLanes) {
      store(logits + i, splat(-__builtin_inff()));
    }
  }
  if (c.num_entries > 0) score_entries<T>(p, task, row, c, chunk * kAttentionChunk, logits);
  for (int64_t h = 0; h < num_heads; ++h) {
    const int64_t place = chunk * num_heads + h;
    sum_logits(logits + h * kAttentionChunk, r.maxima + place, r.sums + place);
  }
}

// Items [begin, end) of all pairs of a row and a chunk of its reserve, in that order.
template <typename T>
void score_items(const AttentionReturnParams& p, int64_t begin, int64_t end) {
  int64_t row_begin = 0;
  for (int64_t row = 0; row < p.attention.batch && row_begin < end; ++row) {
    const ReturnTask task = find_task(p, row);
    const int64_t row_end = row_begin + task.reserve.num_chunks();
    for (int64_t i = max_of(begin, row_begin); i < min_of(end, row_end); ++i) {
      score_chunk<T>(p, task, row, i - row_begin);
    }
    row_begin = row_end;
  }
}

// List `kv` of a row, or the one of all heads: every KV head gets it.
void select_list(const AttentionReturnParams& p, const ReturnTask& task, int64_t row, int64_t kv) {
  const DecodeAttentionParams& a = p.attention;
  const bool per_head = task.reserve.per_head;
  if (task.reserve.len == 0 || (!per_head && kv > 0)) return;
  const int64_t kv_heads = a.arena.num_kv_heads, group = a.num_heads / kv_heads;
  const int64_t chunks = ceil_div(p.reserve_capacity, kAttentionChunk);
  const ReturnRow r = return_row(p, row);
  const ReturnList list = {task.reserve,
                           r,
                           a.num_heads,
                           kv * group,
                           per_head ? group : a.num_heads,
                           a.arena.visual_capacity,
                           r.shares + kv * chunks * kAttentionChunk,
                           r.best + kv * chunks,
                           r.is_open + kv * chunks};
  const int64_t dim = a.arena.head_dim;
  const float* tails = partial_of(a, row, 0, 0) + dim;
  normalise(list, {tails, tails + 1, task.view.num_chunks(), dim + 2, a.num_heads * (dim + 2)},
            {r.maxima, r.sums, task.reserve.num_chunks(), 1, a.num_heads});
  const int64_t capacity = a.returned.capacity;
  int32_t* slots = a.returned.indices + (row * kv_heads + kv) * capacity;
  int32_t* len = a.returned.len + row * kv_heads + kv;
  len[0] = static_cast<int32_t>(select_entries(list, slots));
  for (int64_t i = 1; i < kv_heads && !per_head; ++i) {
    len[i] = len[0];
    memcpy(slots + i * capacity, slots, static_cast<size_t>(len[0]) * sizeof(int32_t));
  }
}

// The chunks of what KV head `kv` of a row got back, behind those of list and text. All KV heads of
// a row have as many as the one with the most.
template <typename T>
void attend_returned(const DecodeAttentionParams& a, const RowView& view, int64_t row, int64_t kv) {
  const KvArena& arena = a.arena;
  const int64_t place = row * arena.num_kv_heads + kv, group = a.num_heads / arena.num_kv_heads;
  const int64_t first = view.num_chunks(), chunks = all_chunks(a, view, row) - first;
  const int64_t row_size = 2 * arena.num_kv_heads * arena.head_dim;
  const T* base = static_cast<const T*>(arena.visual) + view.seq * arena.visual_capacity * row_size;
  const int32_t* slots = a.returned.indices + place * a.returned.capacity;
  ChunkView<T> c;
  c.head_dim = c.v_dim = arena.head_dim;
  c.v_offset = arena.num_kv_heads * c.head_dim;
  c.kv_begin = kv;
  c.num_kv = 1;
  c.scale = a.scale;
  const T* q = static_cast<const T*>(a.q) + row * a.q_stride + kv * group * c.head_dim;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * kAttentionChunk;
    const int64_t left = clamp_to(a.returned.len[place] - begin, 0, kAttentionChunk);
    for (int64_t i = 0; i < left; ++i) c.rows[i] = base + slots[begin + i] * row_size;
    c.num_rows = static_cast<int>(left);
    Ahead<T>(c.keys(), {}).ask_for_all();
    attend_heads(c, {q, partial_of(a, row, first + chunk, kv * group), nullptr, group}, {});
  }
}

// Returns the number of chunks to score.
template <typename T>
int64_t begin_rows(const AttentionReturnParams& p) {
  const int64_t kv_heads = p.attention.arena.num_kv_heads;
  int64_t chunks = 0;
  for (int64_t row = 0; row < p.attention.batch; ++row) {
    const ReturnTask task = find_task(p, row);
    report(p.attention, task.view.status);
    chunks += task.reserve.num_chunks();
    for (int64_t kv = 0; kv < kv_heads; ++kv) p.attention.returned.len[row * kv_heads + kv] = 0;
    fold_row<T>(p, task, row);
  }
  return chunks;
}

template <typename T>
void attend(const AttentionReturnParams& p, ThreadPool& pool) {
  const DecodeAttentionParams& a = p.attention;
  const AttentionWork work = find_work(a);
  attend_lists<T>(a, work, pool);
  const int64_t chunks = begin_rows<T>(p), kv_heads = a.arena.num_kv_heads;
  if (chunks > 0) {
    const int64_t chunk_size = max_of(1, kAttentionChunk * a.num_heads * a.arena.head_dim);
    pool.parallel_for(0, chunks, ceil_div(4 * kElementsPerPart, chunk_size),
                      [&p](int64_t begin, int64_t end) { score_items<T>(p, begin, end); });
    pool.parallel_for(0, a.batch * kv_heads, kv_heads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        select_list(p, find_task(p, i / kv_heads), i / kv_heads, i % kv_heads);
      }
    });
    const int64_t row_size = 2 * max_of(1, a.returned.capacity) * a.arena.head_dim;
    pool.parallel_for(0, a.batch * kv_heads, ceil_div(kElementsPerPart, row_size),
                      [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) {
                          const RowView view = view_row(a, i / kv_heads);
                          attend_returned<T>(a, view, i / kv_heads, i % kv_heads);
                        }
                      });
  }
  merge_lists<T>(a, work, pool);
}

}  // namespace

void attention_return(const AttentionReturnParams& p, ThreadPool& pool) {
  switch (p.attention.arena.dtype) {
    case DType::kFloat32:
      return attend<float>(p, pool);
    case DType::kBFloat16:
      return attend<BFloat16>(p, pool);
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
