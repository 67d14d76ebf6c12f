// shift_detect: a step of every sequence's state machine, the same code for every instruction set.
#include <cmath>

#include "common/math.h"
#include "common/thread_pool.h"
#include "cpu/tier.h"

namespace pydstp {
namespace {

constexpr int64_t kEntriesPerPart = 8192;

// What one row of the batch reads and writes.
struct Row {
  int32_t* state;
  const int32_t* policy;
  const float* numbers;
  float* similarity;
  double* similarity_sum;
  bool is_ready;  // the reserve can be selected from

  bool is_expanded() const { return state[kMode] == kModeExpanded; }
};

// The cosine of anchor and probs over S0, within [0, 1]; 1 where a vector is zero or not a number.
float cosine(const ShiftState& s, int64_t seq, int32_t* status) {
  const int64_t len = s.base_len[seq], base = seq * s.capacity;
  if (len < 0 || len > s.capacity) *status |= kBadLength;
  double dot = 0, anchors = 0, currents = 0;
  for (int64_t i = 0; i < min_of(len, s.capacity); ++i) {
    const int64_t slot = s.base_indices[base + i];
    if (!is_index(slot, s.capacity)) {
      *status |= kBadSlot;
      continue;
    }
    const double a = s.anchor[base + slot], b = s.probs[base + slot];
    dot += a * b;
    anchors += a * a;
    currents += b * b;
  }
  const double quotient = dot / (std::sqrt(anchors) * std::sqrt(currents));
  if (quotient <= 0) return 0.0f;
  return quotient < 1 ? static_cast<float>(quotient) : 1.0f;
}

// Uniform in [0, 1): number `step` of the sequence's stream.
float uniform(const int32_t* policy, int32_t step) {
  const uint64_t low = static_cast<uint32_t>(policy[kSeedLow]);
  const uint64_t high = static_cast<uint32_t>(policy[kSeedHigh]);
  uint64_t x = (high << 32 | low) + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(step) + 1);
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return static_cast<float>(x >> 40) / 16777216.0f;
}

bool fires(const Row& row) {
  const int32_t steps = row.state[kSteps];
  const float similarity = *row.similarity;
  switch (row.policy[kTrigger]) {
    case kTriggerRisd:
      return similarity < row.numbers[kThreshold];
    case kTriggerRandom:
      return uniform(row.policy, steps) < row.numbers[kTriggerRate];
    case kTriggerAvg:
      return steps > 0 && similarity < *row.similarity_sum / steps;
    case kTriggerEvery:
      return true;
  }
  return false;
}

// `left` more steps with what is shown; after the last one the base set comes back.
void keep_for(Row& row, int32_t left) {
  row.state[kRemaining] = left;
  if (left > 0) return;
  row.state[kMode] = kModeBase;
  row.state[kAction] = kActionRestore;
}

// Selects if the reserve is there; otherwise the step has to be repeated once it is.
bool try_select(Row& row, ShiftOutcome outcome) {
  row.state[kOutcome] = row.is_ready ? outcome : kOutcomePending;
  if (!row.is_ready) return false;
  row.state[kAction] = kActionSelect;
  row.state[kMode] = kModeExpanded;
  row.state[kRemaining] = row.policy[kExpandSteps];
  ++row.state[kTriggers];
  return true;
}

void finish_step(Row& row) {
  ++row.state[kSteps];
  *row.similarity_sum += *row.similarity;
}

// Inside the step, for rows whose swap applies to the layers that follow.
void advance_in_step(Row& row) {
  const bool is_expanded = row.is_expanded();
  if (is_expanded && row.policy[kRetrigger] == kRetriggerOff) return;
  if (!fires(row)) return;
  if (is_expanded && row.policy[kRetrigger] == kRetriggerExtend) {
    row.state[kRemaining] = row.policy[kExpandSteps];
    ++row.state[kTriggers];
  } else {
    try_select(row, kOutcomeCommit);
  }
}

// After the step, for rows whose swap applies from the next step on or to a repeated one.
void advance_after_step(Row& row) {
  const bool is_expanded = row.is_expanded(), redoes = row.policy[kApplies] == kAppliesRedo;
  const bool watches = !is_expanded || row.policy[kRetrigger] != kRetriggerOff;
  const bool fired = watches && fires(row);
  if (fired && (!is_expanded || row.policy[kRetrigger] == kRetriggerReselect)) {
    if (!try_select(row, redoes ? kOutcomeRedo : kOutcomeCommit)) return;
  } else if (fired) {
    ++row.state[kTriggers];
    keep_for(row, row.policy[kExpandSteps] - (redoes ? 1 : 0));
  } else if (is_expanded) {
    keep_for(row, row.state[kRemaining] - 1);
  }
  finish_step(row);
}

void advance(Row& row, int32_t phase) {
  const bool is_early = row.policy[kApplies] == kAppliesEarly;
  if (phase == kPhaseMid) {
    if (is_early) advance_in_step(row);
  } else if (phase == kPhaseEnd && !is_early) {
    advance_after_step(row);
  } else {
    if (row.is_expanded()) keep_for(row, row.state[kRemaining] - 1);
    if (phase == kPhaseEnd) finish_step(row);
  }
}

void detect_row(const ShiftDetectParams& p, int64_t batch_row) {
  const ShiftState& s = p.state;
  const int64_t seq = p.seq_idx[batch_row];
  s.score_idx[batch_row] = -1;
  int32_t status = seq == -1 || is_index(seq, s.max_batch) ? 0 : kBadSequence;
  if (is_index(seq, s.max_batch)) {
    Row row = {s.state + seq * kStateWords,
               s.policy + seq * kPolicyWords,
               s.policy_float + seq * kPolicyFloats,
               s.similarity + seq,
               s.similarity_sum + seq,
               false};
    row.is_ready = row.state[kReserveReady] != 0 || s.reserve_len[seq] <= 0;
    row.state[kAction] = kActionNone;
    row.state[kOutcome] = kOutcomeCommit;
    const bool is_early = row.policy[kApplies] == kAppliesEarly;
    if (p.phase == (is_early ? kPhaseMid : kPhaseEnd)) *row.similarity = cosine(s, seq, &status);
    advance(row, p.phase);
    const bool scores = row.state[kAction] == kActionSelect && row.policy[kSwap] != kSwapFull;
    if (scores) s.score_idx[batch_row] = static_cast<int32_t>(seq);
  }
  if (p.status && status) __atomic_fetch_or(p.status, status, __ATOMIC_RELAXED);
}

}  // namespace

void detect_shifts(const ShiftDetectParams& p, ThreadPool& pool) {
  const int64_t rows = ceil_div(kEntriesPerPart, max_of(1, p.state.capacity));
  pool.parallel_for(0, p.batch, rows, [&p](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) detect_row(p, row);
  });
}

}  // namespace pydstp
