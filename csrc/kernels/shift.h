// The decoding-stage shift policy: per sequence, whether attention over the base set S0 has turned
// away from where it was (detect), and which visual slots are shown then (select).
#pragma once

#include "kernels/kv_arena.h"

namespace pydstp {

class ThreadPool;

// Words of a sequence's state and policy. pydstp/ops/shift.py has the same numbers.
enum ShiftStateWord { kMode, kRemaining, kOutcome, kTriggers, kSteps, kReserveReady, kAction };
enum ShiftPolicyWord {
  kTrigger,
  kSwap,
  kRetrigger,
  kApplies,
  kExpandSteps,
  kMaxReturned,
  kBudget,
  kMergeSlot,
  kJoint,
  kSeedLow,
  kSeedHigh,
  kMinBudget
};
enum ShiftPolicyFloat { kThreshold, kTriggerRate };
constexpr int64_t kStateWords = 8, kPolicyWords = 12, kPolicyFloats = 2;

enum ShiftMode { kModeBase, kModeExpanded };
enum ShiftOutcome { kOutcomeCommit, kOutcomePending, kOutcomeRedo };
enum ShiftAction { kActionNone, kActionSelect, kActionRestore };
enum ShiftTrigger { kTriggerNever, kTriggerRisd, kTriggerRandom, kTriggerAvg, kTriggerEvery };
enum ShiftSwap { kSwapCpts, kSwapHard, kSwapMerge, kSwapFull, kSwapAdd, kSwapTop };
enum ShiftRetrigger { kRetriggerOff, kRetriggerExtend, kRetriggerReselect };
enum ShiftApplies { kAppliesNext, kAppliesRedo, kAppliesEarly };
enum ShiftPhase { kPhaseMid, kPhaseEnd, kPhaseRedone };

constexpr uint8_t kPseudoToken = 2;  // in base_mask: in S0, and always shown

// Row s of every array belongs to sequence s. Lists are sorted; entries outside [0, capacity) are
// skipped.
struct ShiftState {
  const float* probs;              // [max_batch, capacity] this step's attention by slot
  const float* anchor;             // [max_batch, capacity] what it is compared with
  const float* scores;             // [max_batch, capacity] of the reserve; of all slots if joint
  const uint8_t* base_mask;        // [max_batch, capacity] 0: not in S0, 2: pseudo token in S0
  const int32_t* base_indices;     // [max_batch, capacity] S0
  const int32_t* base_len;         // [max_batch]
  const int32_t* reserve_indices;  // [max_batch, capacity] R: visual slots not in S0
  const int32_t* reserve_len;      // [max_batch]
  int32_t* dropped_indices;        // [max_batch, capacity] what a merge has to merge
  int32_t* dropped_len;            // [max_batch]
  float* similarity;               // [max_batch] of the last step
  double* similarity_sum;          // [max_batch] over steps
  int32_t* state;                  // [max_batch, kStateWords]
  const int32_t* policy;           // [max_batch, kPolicyWords]
  const float* policy_float;       // [max_batch, kPolicyFloats]
  int32_t* score_idx;              // [max_batch], by row of the batch
  int32_t* select_workspace;       // [max_batch, 2, capacity]
  int64_t max_batch, capacity;
};

struct ShiftDetectParams {
  ShiftState state;
  const int32_t* seq_idx;  // [batch]; -1: the row is skipped. No sequence twice
  int32_t* status;         // [1] or nullptr
  int64_t batch;           // at most max_batch
  int32_t phase;           // ShiftPhase
};

struct ShiftSelectParams {
  ShiftState state;
  const int32_t* seq_idx;    // [batch]; -1: the row is skipped. No sequence twice
  int32_t* visible_indices;  // [max_batch, num_groups, list_capacity]
  int32_t* visible_len;      // [max_batch, num_groups]
  int32_t* status;           // [1] or nullptr
  int64_t batch, num_groups, list_capacity;
  int64_t group_idx;  // 0 <= group_idx < num_groups
  const float* mass;  // [max_batch, num_heads], read for kSwapTop
  int64_t num_heads;
};

// kSwapTop shows as many of S0's n slots as the largest mass of a head says, kMinBudget to kBudget
// of them. A mass is a rounded quotient: what lies within its error above a whole number counts as
// that number.
constexpr double kMassSlack = 1e-6;

void shift_detect_cpu(const ShiftDetectParams& p, ThreadPool& pool);
void shift_detect_simt(const ShiftDetectParams& p);
int shift_detect_cuda(const ShiftDetectParams& p, void* stream);

void shift_select_cpu(const ShiftSelectParams& p, ThreadPool& pool);
void shift_select_simt(const ShiftSelectParams& p);
int shift_select_cuda(const ShiftSelectParams& p, void* stream);

}  // namespace pydstp
