// The passes of attention over the cache, for the ops that are made of them.
//
// First every (row, chunk) is one work item: the softmax of its entries alone, for all heads, left
// in the workspace as (sum of p * v, maximum, sum of p). Then every (row, head) merges its chunks
// in order. An item reads whole rows of the cache, each once for all its query heads.
//
// A monitor keeps the scores of list entries beside that; the second pass turns each head's into
// weighted probabilities, and a third one adds them up over heads.
#pragma once

#include "common/thread_pool.h"
#include "cpu/attention_chunk.h"
#include "cpu/attention_monitor.h"

namespace pydstp {
namespace PYDSTP_TIER {

// What one row of the batch reads; lengths are already within their capacities.
struct RowView {
  int64_t seq;
  const int32_t* list;
  int64_t list_len, text_len;
  int32_t status;

  int64_t list_chunks() const { return ceil_div(list_len, kAttentionChunk); }
  int64_t num_chunks() const { return list_chunks() + ceil_div(text_len, kAttentionChunk); }
};

static inline int64_t bounded(int64_t len, int64_t capacity, int32_t* status) {
  if (len < 0 || len > capacity) *status |= kBadLength;
  return clamp_to(len, 0, capacity);
}

// What the monitor multiplies the row's probabilities by; 0 if they are not wanted.
static inline float monitor_weight(const DecodeAttentionParams& p, const RowView& view) {
  if (!p.monitor.probs || !view.list) return 0.0f;
  return p.monitor.layer_weights[view.seq * p.num_layers + p.layer_idx];
}

// Without an output, text matters for the normaliser only, and rows without weight do not at all.
static inline void drop_unneeded(const DecodeAttentionParams& p, RowView& view) {
  const bool has_weight = monitor_weight(p, view) != 0.0f;
  if (!has_weight) view.list_len = 0;
  if (!has_weight || p.monitor.norm[view.seq] == 0) view.text_len = 0;
}

static inline RowView view_row(const DecodeAttentionParams& p, int64_t row) {
  RowView view = {p.seq_idx[row], nullptr, 0, 0, 0};
  if (view.seq == -1) return view;
  if (!is_index(view.seq, p.arena.max_batch)) {
    view.status = kBadSequence;
    return view;
  }
  view.text_len = bounded(p.text_len[view.seq], p.arena.text_capacity, &view.status);
  const int64_t group = p.layer_to_group[view.seq * p.num_layers + p.layer_idx];
  if (is_index(group, p.num_groups)) {
    const int64_t list_idx = view.seq * p.num_groups + group;
    view.list = p.visible_indices + list_idx * p.list_capacity;
    view.list_len = bounded(p.visible_len[list_idx], p.list_capacity, &view.status);
  } else {
    view.status |= kBadLayer;
  }
  if (!p.out) drop_unneeded(p, view);
  return view;
}

static inline void report(const DecodeAttentionParams& p, int32_t bits) {
  if (p.status && bits) __atomic_fetch_or(p.status, bits, __ATOMIC_RELAXED);
}

// The cache rows of one chunk, without the list entries that name none.
template <typename T>
static int find_rows(const DecodeAttentionParams& p, const RowView& view, int64_t chunk,
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

// Which rows of a chunk of the list count, in the order of find_rows.
template <typename T>
static void mark_counted(const DecodeAttentionParams& p, const RowView& view, int64_t chunk,
                         ChunkView<T>& c) {
  const int64_t first = chunk * kAttentionChunk, capacity = p.arena.visual_capacity;
  c.num_logits = min_of(kAttentionChunk, view.list_len - first);
  c.logits_stride = p.list_capacity;
  int count = 0;
  for (int64_t i = 0; i < c.num_logits; ++i) {
    const int64_t slot = view.list[first + i];
    if (!is_index(slot, capacity)) continue;
    const uint8_t* mask = p.monitor.base_mask;
    c.counts[count++] = !mask || mask[view.seq * capacity + slot] ? 1.0f : 0.0f;
  }
  while (count < kAttentionChunk) c.counts[count++] = 0.0f;
}

static inline float* logits_of(const DecodeAttentionParams& p, int64_t row, int64_t head) {
  return p.monitor.logits + (row * p.num_heads + head) * p.list_capacity;
}

static inline float* partial_of(const DecodeAttentionParams& p, int64_t row, int64_t chunk,
                                int64_t head) {
  const int64_t entry = (row * max_attention_chunks(p) + chunk) * p.num_heads + head;
  return p.workspace + entry * (p.arena.head_dim + 2);
}

template <typename T>
static void attend_chunk(const DecodeAttentionParams& p, const RowView& view, int64_t row,
                         int64_t chunk, int64_t kv_begin, int64_t kv_end) {
  ChunkView<T> c;
  c.num_rows = find_rows(p, view, chunk, c.rows);
  c.head_dim = p.arena.head_dim;
  c.v_offset = p.arena.num_kv_heads * c.head_dim;
  c.v_dim = p.out ? c.head_dim : 0;
  c.scale = p.scale;
  const bool is_monitored = chunk < view.list_chunks() && monitor_weight(p, view) != 0.0f;
  if (is_monitored) mark_counted(p, view, chunk, c);
  const int64_t group = p.num_heads / p.arena.num_kv_heads;
  for (int64_t kv = kv_begin; kv < kv_end; kv += kKvHeadsTogether) {
    c.kv_begin = kv;
    c.num_kv = min_of(kKvHeadsTogether, kv_end - kv);
    const T* q = static_cast<const T*>(p.q) + row * p.q_stride + kv * group * c.head_dim;
    float* logits =
        is_monitored ? logits_of(p, row, kv * group) + chunk * kAttentionChunk : nullptr;
    attend_heads(c, QueryHeads<T>{q, partial_of(p, row, chunk, kv * group), logits, group});
  }
}

// Items [begin, end) of all (row, chunk, KV head block) triples, in that order.
template <typename T>
static void attend_items(const DecodeAttentionParams& p, int64_t blocks, int64_t begin,
                         int64_t end) {
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

// The chunks of a row in the workspace: list, text, and what was returned.
static inline int64_t all_chunks(const DecodeAttentionParams& p, const RowView& view, int64_t row) {
  int64_t longest = 0;
  for (int64_t kv = 0; p.returned.len && kv < p.arena.num_kv_heads; ++kv) {
    longest = max_of(longest, p.returned.len[row * p.arena.num_kv_heads + kv]);
  }
  return view.num_chunks() + ceil_div(longest, kAttentionChunk);
}

template <typename T>
static void merge_heads(const DecodeAttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / p.num_heads, head = i % p.num_heads;
    const int64_t stride = p.num_heads * (p.arena.head_dim + 2);
    const int64_t chunks = all_chunks(p, view_row(p, row), row);
    merge_chunks(partial_of(p, row, 0, head), chunks, stride, p.arena.head_dim,
                 static_cast<T*>(p.out) + i * p.arena.head_dim);
  }
}

// The monitored rows' kept scores become weighted probabilities.
static inline void scale_heads(const DecodeAttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / p.num_heads, head = i % p.num_heads;
    const RowView view = view_row(p, row);
    if (monitor_weight(p, view) == 0.0f) continue;
    float* logits = logits_of(p, row, head);
    const float weight = p.monitor.head_weights[view.seq * p.num_heads + head];
    if (weight == 0.0f) continue;
    float mass;
    if (p.monitor.norm[view.seq] == 0) {
      mass = weigh_subset(logits, view.list_len, weight);
    } else {
      const int64_t stride = p.num_heads * (p.arena.head_dim + 2);
      const float* tails = partial_of(p, row, 0, head) + p.arena.head_dim;
      mass =
          weigh_in_context(logits, view.list_len, tails, all_chunks(p, view, row), stride, weight);
    }
    if (p.monitor.mass) p.monitor.mass[view.seq * p.num_heads + head] = mass;
  }
}

// Adds the probabilities of the entries of one chunk of the list to their slots.
static inline void add_probs(const DecodeAttentionParams& p, const RowView& view, int64_t row,
                             int64_t chunk) {
  const int64_t first = chunk * kAttentionChunk, capacity = p.arena.visual_capacity;
  const int64_t size = min_of(kAttentionChunk, view.list_len - first);
  float totals[kAttentionChunk] = {};
  sum_heads(logits_of(p, row, 0) + first, p.list_capacity,
            p.monitor.head_weights + view.seq * p.num_heads, p.num_heads, size, totals);
  const float weight = monitor_weight(p, view);
  const float* total = totals;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t slot = view.list[first + i], place = view.seq * capacity + slot;
    if (!is_index(slot, capacity)) continue;
    const bool counts = !p.monitor.base_mask || p.monitor.base_mask[place];
    if (counts) p.monitor.probs[place] += weight * *total;
    ++total;
  }
}

static inline int64_t monitored_chunks(const DecodeAttentionParams& p, const RowView& view) {
  return monitor_weight(p, view) == 0.0f ? 0 : view.list_chunks();
}

// Items [begin, end) of all pairs of a monitored row and a chunk of its list.
static inline void add_items(const DecodeAttentionParams& p, int64_t begin, int64_t end) {
  int64_t row_begin = 0;
  for (int64_t row = 0; row < p.batch && row_begin < end; ++row) {
    const RowView view = view_row(p, row);
    const int64_t row_end = row_begin + monitored_chunks(p, view);
    for (int64_t i = max_of(begin, row_begin); i < min_of(end, row_end); ++i) {
      add_probs(p, view, row, i - row_begin);
    }
    row_begin = row_end;
  }
}

// How much there is to do, over all rows.
struct AttentionWork {
  int64_t chunks, monitored;  // of list and text; of lists that are monitored
};

static inline AttentionWork find_work(const DecodeAttentionParams& p) {
  AttentionWork work = {};
  for (int64_t row = 0; row < p.batch; ++row) {
    const RowView view = view_row(p, row);
    report(p, view.status);
    work.chunks += view.num_chunks();
    work.monitored += monitored_chunks(p, view);
  }
  return work;
}

// Leaves the chunks of list and text in the workspace.
template <typename T>
static void attend_lists(const DecodeAttentionParams& p, const AttentionWork& work,
                         ThreadPool& pool) {
  const bool is_few = work.chunks < 4 * pool.num_threads();
  const int64_t blocks = is_few ? p.arena.num_kv_heads : 1;
  const int64_t item_size =
      kAttentionChunk * 2 * ceil_div(p.arena.num_kv_heads, blocks) * p.arena.head_dim;
  pool.parallel_for(
      0, work.chunks * blocks, ceil_div(kElementsPerPart, max_of(1, item_size)),
      [&p, blocks](int64_t begin, int64_t end) { attend_items<T>(p, blocks, begin, end); });
}

// Makes the result, and adds to the monitor, from all chunks in the workspace.
template <typename T>
static void merge_lists(const DecodeAttentionParams& p, const AttentionWork& work,
                        ThreadPool& pool) {
  const int64_t monitored = work.monitored;
  const int64_t merge_size = ceil_div(work.chunks, max_of(1, p.batch)) * p.arena.head_dim;
  pool.parallel_for(0, p.batch * p.num_heads, ceil_div(kElementsPerPart, max_of(1, merge_size)),
                    [&p, monitored](int64_t begin, int64_t end) {
                      const bool is_scaled = monitored || p.monitor.mass;
                      if (is_scaled) scale_heads(p, begin, end);  // before weights replace maxima
                      if (p.out) merge_heads<T>(p, begin, end);
                    });
  pool.parallel_for(0, monitored, ceil_div(kElementsPerPart, kAttentionChunk * p.num_heads),
                    [&p](int64_t begin, int64_t end) { add_items(p, begin, end); });
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
