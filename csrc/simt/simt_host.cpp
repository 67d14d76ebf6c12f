#include "simt/simt_host.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/asan.h"
#include "simt/fiber.h"

namespace pydstp {
namespace simt {
namespace {

constexpr int64_t kGuardBytes = 256;  // behind the shared memory; must stay as it was
constexpr int kPoison = 0xff;         // NaN as float and as bf16, -1 as an integer

std::atomic<uint64_t> seed{0};

enum class State { kReady, kAtBarrier, kInWarpOp, kDone };

struct Thread {
  Fiber fiber;
  ThreadView view;
  State state = State::kReady;
  int line = 0;  // where it waits
  WarpOp op = WarpOp::kSum;
  uint64_t bits = 0;  // of what it brings to a warp operation, and then of the result
};

uint64_t combined(uint64_t a, uint64_t b, WarpOp op) {
  if (op == WarpOp::kWholeSum) return a + b;
  float x, y;
  memcpy(&x, &a, sizeof(x));
  memcpy(&y, &b, sizeof(y));
  const float result = op == WarpOp::kSum ? x + y : std::fmax(x, y);
  uint64_t bits = 0;
  memcpy(&bits, &result, sizeof(result));
  return bits;
}

// Runs the blocks of one launch.
class Scheduler {
 public:
  Scheduler(const char* name, void (*body)(const void*), const void* context, Grid grid,
            int num_threads, int64_t shared_bytes)
      : name_(name),
        body_(body),
        context_(context),
        grid_(grid),
        threads_(num_threads),
        shared_(shared_bytes + kGuardBytes),
        random_(seed.load()) {}

  void run();
  void wait(Thread& thread, State state, int line);
  Thread& running() { return *running_; }
  void complain(const char* what) { complaint_ = what; }

 private:
  static void enter();
  void run_block(Grid block);
  void run_ready_threads(const std::vector<int>& order);
  bool finish_warp_ops();
  bool finish_barrier();
  uint8_t* guard() { return shared_.data() + shared_.size() - kGuardBytes; }
  void check_guard();
  std::vector<int> order(int64_t count);
  int count(State state) const;
  [[noreturn]] void fail(const std::string& what) const;

  const char* name_;
  void (*body_)(const void*);
  const void* context_;
  Grid grid_;
  std::vector<Thread> threads_;
  std::vector<uint8_t> shared_;
  std::mt19937_64 random_;
  Fiber home_;
  Thread* running_ = nullptr;
  const char* complaint_ = nullptr;
};

thread_local Scheduler* active = nullptr;

void Scheduler::fail(const std::string& what) const {
  throw std::runtime_error(name_ + (": " + what));
}

int Scheduler::count(State state) const {
  return static_cast<int>(std::count_if(threads_.begin(), threads_.end(),
                                        [state](const Thread& t) { return t.state == state; }));
}

std::vector<int> Scheduler::order(int64_t count) {
  std::vector<int> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  if (seed.load() != 0) std::shuffle(indices.begin(), indices.end(), random_);
  return indices;
}

void Scheduler::run() {
  if (threads_.empty() || threads_.size() % kWarpSize || threads_.size() > 1024) {
    fail("a block has 32 to 1024 threads, a multiple of 32; got " +
         std::to_string(threads_.size()));
  }
  for (const int i : order(grid_.x * grid_.y * grid_.z)) {
    run_block({i % grid_.x, i / grid_.x % grid_.y, i / (grid_.x * grid_.y)});
  }
}

void Scheduler::run_block(Grid block) {
  memset(shared_.data(), kPoison, shared_.size());
  forbid_memory(guard(), kGuardBytes);
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.view = {block, static_cast<int>(i), static_cast<int>(threads_.size()), shared_.data()};
    thread.state = State::kReady;
    thread.fiber.start(&Scheduler::enter);
  }
  const std::vector<int> turns = order(static_cast<int64_t>(threads_.size()));
  do {
    run_ready_threads(turns);
  } while (finish_warp_ops() || finish_barrier());
  check_guard();
  if (complaint_) fail(complaint_);
}

void Scheduler::run_ready_threads(const std::vector<int>& turns) {
  for (const int i : turns) {
    if (threads_[i].state != State::kReady) continue;
    running_ = &threads_[i];
    running_->fiber.switch_from(home_);
  }
}

void Scheduler::enter() {
  Scheduler& scheduler = *active;
  Fiber::arrive(scheduler.home_);
  scheduler.body_(scheduler.context_);
  scheduler.wait(scheduler.running(), State::kDone, 0);
}

void Scheduler::wait(Thread& thread, State state, int line) {
  thread.state = state;
  thread.line = line;
  home_.switch_from(thread.fiber);
}

// Combines the values of every warp whose lanes all wait in the same operation, in the order of a
// butterfly of shuffles.
bool Scheduler::finish_warp_ops() {
  bool any = false;
  for (size_t first = 0; first < threads_.size(); first += kWarpSize) {
    Thread* const warp = &threads_[first];
    const auto is_with_lane_0 = [warp](const Thread& t) {
      return t.state == State::kInWarpOp && t.line == warp->line && t.op == warp->op;
    };
    if (!std::all_of(warp, warp + kWarpSize, is_with_lane_0)) continue;
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      uint64_t old[kWarpSize];
      for (int i = 0; i < kWarpSize; ++i) old[i] = warp[i].bits;
      for (int i = 0; i < kWarpSize; ++i) {
        warp[i].bits = combined(old[i], old[i ^ step], warp->op);
      }
    }
    for (int i = 0; i < kWarpSize; ++i) warp[i].state = State::kReady;
    any = true;
  }
  return any;
}

// Releases the barrier if the whole block is there; false when the block is over.
bool Scheduler::finish_barrier() {
  const int done = count(State::kDone), waiting = count(State::kAtBarrier);
  const int total = static_cast<int>(threads_.size());
  if (done == total) return false;
  if (count(State::kInWarpOp) > 0) {
    fail("divergent warp operation: not all lanes of a warp reached it");
  }
  if (waiting != total) {
    fail("divergent barrier: " + std::to_string(waiting) + " of " + std::to_string(total) +
         " threads reached it, the others have returned");
  }
  for (Thread& thread : threads_) {
    if (thread.line != threads_[0].line) fail("divergent barrier: threads wait at different lines");
    thread.state = State::kReady;
  }
  return true;
}

void Scheduler::check_guard() {
  allow_memory(guard(), kGuardBytes);
  const auto is_untouched = [](uint8_t byte) { return byte == kPoison; };
  if (std::all_of(guard(), guard() + kGuardBytes, is_untouched)) return;
  fail("shared memory was written past its end (" + std::to_string(shared_.size() - kGuardBytes) +
       " bytes)");
}

}  // namespace

const ThreadView* current() { return &active->running().view; }

void wait_at_barrier(int line) { active->wait(active->running(), State::kAtBarrier, line); }

void complain(const char* what) { active->complain(what); }

uint64_t combine_warp(uint64_t x, WarpOp op, int line) {
  Thread& thread = active->running();
  thread.bits = x;
  thread.op = op;
  active->wait(thread, State::kInWarpOp, line);
  return thread.bits;
}

float combine_warp(float x, WarpOp op, int line) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(x));
  bits = combine_warp(bits, op, line);
  memcpy(&x, &bits, sizeof(x));
  return x;
}

void set_seed(uint64_t new_seed) { seed = new_seed; }

void run_grid(const char* name, void (*body)(const void*), const void* context, Grid grid,
              int num_threads, int64_t shared_bytes) {
  Scheduler scheduler(name, body, context, grid, num_threads, shared_bytes);
  active = &scheduler;
  scheduler.run();
}

}  // namespace simt
}  // namespace pydstp
