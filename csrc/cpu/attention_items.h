// What attention over the cache is made of: rows of the batch, cut into chunks.
#pragma once

#include "cpu/attention_chunk.h"

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

// Items [begin, end) of all (row, chunk, KV head block) triples, in that order; one of them is
// current.
template <typename T>
class Items {
 public:
  Items(const DecodeAttentionParams& p, int64_t blocks, int64_t begin, int64_t end)
      : p_(p), blocks_(blocks), item_(begin - 1), end_(end) {}

  // Goes on to the next item; false behind the last.
  bool next() {
    if (++item_ >= end_) return false;
    while (item_ >= row_end_) {
      if (++row_ == p_.batch) return false;
      view_ = view_row(p_, row_);
      row_begin_ = row_end_;
      row_end_ += view_.num_chunks() * blocks_;
    }
    return true;
  }

  // What the current item reads, without what a monitor needs.
  void find(ChunkView<T>& c) const {
    const int64_t heads = ceil_div(p_.arena.num_kv_heads, blocks_);
    c.head_dim = p_.arena.head_dim;
    c.v_offset = p_.arena.num_kv_heads * c.head_dim;
    c.v_dim = p_.out ? c.head_dim : 0;
    c.scale = p_.scale;
    c.kv_begin = (item_ - row_begin_) % blocks_ * heads;
    c.num_kv = min_of(heads, p_.arena.num_kv_heads - c.kv_begin);
    c.num_rows = find_rows(p_, view_, chunk(), c.rows);
  }

  int64_t row() const { return row_; }
  int64_t chunk() const { return (item_ - row_begin_) / blocks_; }
  const RowView& view() const { return view_; }

 private:
  const DecodeAttentionParams& p_;
  int64_t blocks_, item_, end_;
  int64_t row_ = -1, row_begin_ = 0, row_end_ = 0;
  RowView view_ = {};
};

// One item, the keys of its first KV heads being on their way; `next` is asked for meanwhile.
template <typename T>
static void attend_item(const DecodeAttentionParams& p, const Items<T>& item, ChunkView<T>& c,
                        const Columns<T>& next) {
  const int64_t row = item.row(), chunk = item.chunk();
  const bool is_monitored =
      chunk < item.view().list_chunks() && monitor_weight(p, item.view()) != 0.0f;
  if (is_monitored) mark_counted(p, item.view(), chunk, c);
  const int64_t group = p.num_heads / p.arena.num_kv_heads, kv_end = c.kv_begin + c.num_kv;
  while (c.kv_begin < kv_end) {
    c.num_kv = min_of(kKvHeadsTogether, kv_end - c.kv_begin);
    const int64_t kv = c.kv_begin;
    const T* q = static_cast<const T*>(p.q) + row * p.q_stride + kv * group * c.head_dim;
    float* logits =
        is_monitored ? logits_of(p, row, kv * group) + chunk * kAttentionChunk : nullptr;
    const bool is_last = kv + c.num_kv == kv_end;
    attend_heads(c, QueryHeads<T>{q, partial_of(p, row, chunk, kv * group), logits, group},
                 is_last ? next : Columns<T>{});
    c.kv_begin += c.num_kv;
  }
}

// Two items are in view: the rows of the one after the current are known, and asked for, early.
template <typename T>
static void attend_items(const DecodeAttentionParams& p, int64_t blocks, int64_t begin,
                         int64_t end) {
  ChunkView<T> views[2];
  Items<T> now(p, blocks, begin, end), later = now;
  bool has_item = now.next() && later.next();
  if (has_item) now.find(views[0]);
  Ahead<T>(has_item ? views[0].keys() : Columns<T>{}, {}).ask_for_all();
  for (int turn = 0; has_item; turn = 1 - turn, now.next()) {
    ChunkView<T>&c = views[turn], &next = views[1 - turn];
    has_item = later.next();
    if (has_item) later.find(next);
    attend_item(p, now, c, has_item ? next.keys() : Columns<T>{});
  }
}

}  // namespace PYDSTP_TIER
}  // namespace pydstp
