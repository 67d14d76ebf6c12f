// Grid: one block per row of the batch. Its threads add up the three sums of the cosine, each over
// every num_threads-th entry of S0; the first thread adds these in order and decides.
#pragma once

#include "kernels/kv_arena.cuh"
#include "kernels/shift.h"

namespace pydstp {

constexpr int kDetectThreads = 128;

struct ShiftSums {
  double dot = 0, anchors = 0, currents = 0;
};

PYDSTP_DEVICE ShiftSums shift_sums(const ShiftDetectParams& p, int64_t seq) {
  const ShiftState& s = p.state;
  const int64_t len = s.base_len[seq], bounded = clamp_to(len, 0, s.capacity);
  if (bounded != len && thread_idx() == 0) set_status(p.status, kBadLength);
  ShiftSums sums;
  for (int64_t i = thread_idx(); i < bounded; i += num_threads()) {
    const int64_t slot = s.base_indices[seq * s.capacity + i];
    if (!is_index(slot, s.capacity)) {
      set_status(p.status, kBadSlot);
      continue;
    }
    const double anchor = s.anchor[seq * s.capacity + slot];
    const double current = s.probs[seq * s.capacity + slot];
    sums.dot += anchor * current;
    sums.anchors += anchor * anchor;
    sums.currents += current * current;
  }
  return sums;
}

// The cosine within [0, 1], 1 where it is not defined.
PYDSTP_DEVICE float shift_similarity(const ShiftSums* parts) {
  ShiftSums total;
  for (int i = 0; i < num_threads(); ++i) {
    total.dot += parts[i].dot;
    total.anchors += parts[i].anchors;
    total.currents += parts[i].currents;
  }
  const double cosine = total.dot / (sqrt(total.anchors) * sqrt(total.currents));
  if (!(cosine < 1)) return 1.0f;
  return cosine > 0 ? static_cast<float>(cosine) : 0.0f;
}

// Number `step` of the sequence's random numbers in [0, 1).
PYDSTP_DEVICE float shift_random(const int32_t* policy, int32_t step) {
  const uint64_t seed = static_cast<uint64_t>(static_cast<uint32_t>(policy[kSeedHigh])) << 32 |
                        static_cast<uint32_t>(policy[kSeedLow]);
  uint64_t bits = seed + 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(int64_t{step} + 1);
  bits ^= bits >> 30;
  bits *= 0xBF58476D1CE4E5B9ull;
  bits ^= bits >> 27;
  bits *= 0x94D049BB133111EBull;
  bits ^= bits >> 31;
  return static_cast<float>(bits >> 40) * (1.0f / 16777216.0f);
}

// One sequence's words, while one thread works on them.
struct ShiftWords {
  int32_t* state;
  const int32_t* policy;
  const float* numbers;
  float similarity;
  double similarity_sum;
};

PYDSTP_DEVICE bool shift_fires(const ShiftWords& w) {
  const int32_t trigger = w.policy[kTrigger], steps = w.state[kSteps];
  if (trigger == kTriggerRisd) return w.similarity < w.numbers[kThreshold];
  if (trigger == kTriggerAvg) return steps > 0 && w.similarity < w.similarity_sum / steps;
  if (trigger == kTriggerRandom) return shift_random(w.policy, steps) < w.numbers[kTriggerRate];
  return trigger == kTriggerEvery;
}

PYDSTP_DEVICE void begin_window(ShiftWords& w, int32_t steps) {
  w.state[kTriggers] += 1;
  w.state[kRemaining] = steps;
}

// One step of the window is over, or there is none left.
PYDSTP_DEVICE void count_window(ShiftWords& w, int32_t steps) {
  w.state[kRemaining] -= steps;
  if (w.state[kRemaining] > 0) return;
  w.state[kMode] = kModeBase;
  w.state[kAction] = kActionRestore;
}

// What a trigger does; false if the step cannot be finished yet.
PYDSTP_DEVICE bool obey_trigger(ShiftWords& w, bool is_ready, bool at_end) {
  const int32_t expand_steps = w.policy[kExpandSteps];
  const bool redoes = at_end && w.policy[kApplies] == kAppliesRedo;
  if (w.state[kMode] == kModeExpanded && w.policy[kRetrigger] == kRetriggerExtend) {
    begin_window(w, expand_steps);
    if (at_end) count_window(w, redoes ? 1 : 0);
    return true;
  }
  if (!is_ready) {
    w.state[kOutcome] = kOutcomePending;
    return false;
  }
  begin_window(w, expand_steps);
  w.state[kMode] = kModeExpanded;
  w.state[kAction] = kActionSelect;
  if (redoes) w.state[kOutcome] = kOutcomeRedo;
  return true;
}

// Returns whether the step is finished, so that it counts.
PYDSTP_DEVICE bool advance_shift(ShiftWords& w, bool is_ready, int32_t phase) {
  const bool is_early = w.policy[kApplies] == kAppliesEarly;
  const bool is_expanded = w.state[kMode] == kModeExpanded;
  const bool decides = phase == (is_early ? kPhaseMid : kPhaseEnd);
  const bool watches = decides && (!is_expanded || w.policy[kRetrigger] != kRetriggerOff);
  if (watches && shift_fires(w)) {
    return obey_trigger(w, is_ready, phase == kPhaseEnd) && phase == kPhaseEnd;
  }
  if (phase != kPhaseMid && is_expanded) count_window(w, 1);
  return phase == kPhaseEnd;
}

PYDSTP_KERNEL shift_detect_kernel(ShiftDetectParams p) {
  PYDSTP_SHARED(ShiftSums, parts);  // [num_threads]
  const ShiftState& s = p.state;
  const int64_t seq = p.seq_idx[block_x()];
  if (thread_idx() == 0) s.score_idx[block_x()] = -1;
  if (!is_index(seq, s.max_batch)) {  // the whole block
    if (seq != -1 && thread_idx() == 0) set_status(p.status, kBadSequence);
    return;
  }
  ShiftWords w = {s.state + seq * kStateWords, s.policy + seq * kPolicyWords,
                  s.policy_float + seq * kPolicyFloats, s.similarity[seq], s.similarity_sum[seq]};
  const bool is_early = w.policy[kApplies] == kAppliesEarly;
  const bool observes = p.phase == (is_early ? kPhaseMid : kPhaseEnd);
  if (observes) parts[thread_idx()] = shift_sums(p, seq);
  sync_threads();
  if (thread_idx() != 0) return;
  if (observes) s.similarity[seq] = w.similarity = shift_similarity(parts);
  w.state[kOutcome] = kOutcomeCommit;
  w.state[kAction] = kActionNone;
  const bool is_ready = w.state[kReserveReady] != 0 || s.reserve_len[seq] <= 0;
  if (advance_shift(w, is_ready, p.phase)) {
    w.state[kSteps] += 1;
    s.similarity_sum[seq] = w.similarity_sum + w.similarity;
  }
  const bool is_scored = w.state[kAction] == kActionSelect && w.policy[kSwap] != kSwapFull;
  if (is_scored) s.score_idx[block_x()] = static_cast<int32_t>(seq);
}

inline int launch_shift_detect(const ShiftDetectParams& p, void* stream) {
  constexpr int64_t kSharedBytes = kDetectThreads * sizeof(ShiftSums);
  return PYDSTP_LAUNCH(shift_detect_kernel, Grid{p.batch}, kDetectThreads, kSharedBytes, stream, p);
}

}  // namespace pydstp
