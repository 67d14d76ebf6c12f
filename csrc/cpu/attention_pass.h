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
#include "cpu/attention_items.h"
#include "cpu/attention_monitor.h"

namespace pydstp {
namespace PYDSTP_TIER {

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
