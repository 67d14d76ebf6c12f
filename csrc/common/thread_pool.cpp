#include "common/thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "common/math.h"

namespace pydstp {
namespace {

constexpr int64_t kPartsPerThread = 4;
constexpr auto kSpinTime = std::chrono::microseconds(30);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins for kSpinTime at most; returns whether `ready` came true.
template <typename Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

// One word says which job is current and which of its parts are free, so that a worker which wakes
// late can never take a part of a job that is over: job number | number of parts | next part.
constexpr uint64_t kFieldMask = 0xffff;

uint64_t make_ticket(uint64_t job, uint64_t num_parts) { return job << 32 | num_parts << 16; }
uint64_t job_of(uint64_t ticket) { return ticket >> 32; }
uint64_t next_part(uint64_t ticket) { return ticket & kFieldMask; }
bool has_free_part(uint64_t ticket) { return next_part(ticket) < (ticket >> 16 & kFieldMask); }

}  // namespace

struct ThreadPool::State {
  std::mutex turn;   // held by the thread whose job runs
  std::mutex sleep;  // guards the two condition variables
  std::condition_variable work_came;
  std::condition_variable work_done;
  std::atomic<uint64_t> ticket{0};
  std::atomic<int> parts_left{0};
  std::atomic<bool> stopping{false};
  std::vector<std::thread> workers;
  pid_t owner = getpid();

  // The job. Read only by a thread that holds a part, so it cannot change under a reader.
  Body body = nullptr;
  const void* f = nullptr;
  int64_t begin = 0, size = 0, num_parts = 0;

  void start(int64_t first, int64_t last, int64_t parts, Body new_body, const void* new_f);
  void take_parts();
  void wait_until_done();
  void work();
};

void ThreadPool::State::start(int64_t first, int64_t last, int64_t parts, Body new_body,
                              const void* new_f) {
  body = new_body, f = new_f, begin = first, size = last - first, num_parts = parts;
  parts_left.store(static_cast<int>(parts), std::memory_order_relaxed);
  const uint64_t job = job_of(ticket.load(std::memory_order_relaxed)) + 1;
  {
    std::lock_guard<std::mutex> lock(sleep);
    ticket.store(make_ticket(job, static_cast<uint64_t>(parts)), std::memory_order_release);
  }
  work_came.notify_all();
}

void ThreadPool::State::take_parts() {
  uint64_t seen = ticket.load(std::memory_order_acquire);
  while (has_free_part(seen)) {
    if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    const auto part = static_cast<int64_t>(next_part(seen));
    body(f, begin + size * part / num_parts, begin + size * (part + 1) / num_parts);
    if (parts_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(sleep);
      work_done.notify_all();
    }
    seen = ticket.load(std::memory_order_acquire);
  }
}

void ThreadPool::State::wait_until_done() {
  const auto is_done = [this] { return parts_left.load(std::memory_order_acquire) == 0; };
  if (spin_until(is_done)) return;
  std::unique_lock<std::mutex> lock(sleep);
  work_done.wait(lock, is_done);
}

void ThreadPool::State::work() {
  const auto has_news = [this] {
    return has_free_part(ticket.load(std::memory_order_acquire)) ||
           stopping.load(std::memory_order_relaxed);
  };
  while (!stopping.load(std::memory_order_relaxed)) {
    if (!spin_until(has_news)) {
      std::unique_lock<std::mutex> lock(sleep);
      work_came.wait(lock, has_news);
    }
    take_parts();
  }
}

ThreadPool::ThreadPool(int num_threads) : state_(new State), num_threads_(num_threads) {
  for (int i = 1; i < num_threads; ++i) {
    state_->workers.emplace_back([state = state_] { state->work(); });
  }
}

ThreadPool::~ThreadPool() {
  close();
  // In a forked child the workers are gone and their locks may be held for ever: leave it all.
  if (state_->owner == getpid()) delete state_;
}

void ThreadPool::close() {
  if (state_->owner != getpid()) return;
  std::lock_guard<std::mutex> turn(state_->turn);
  {
    std::lock_guard<std::mutex> lock(state_->sleep);
    state_->stopping = true;
  }
  state_->work_came.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
  state_->workers.clear();
}

void ThreadPool::run(int64_t begin, int64_t end, int64_t grain, Body body, const void* f) {
  if (state_->owner != getpid()) return body(f, begin, end);
  std::lock_guard<std::mutex> turn(state_->turn);
  const int64_t most_parts = (end - begin) / max_of(1, grain);
  const auto workers = static_cast<int64_t>(state_->workers.size());
  const int64_t num_parts = min_of(most_parts, kPartsPerThread * (workers + 1));
  if (num_parts <= 1 || workers == 0) return body(f, begin, end);
  state_->start(begin, end, num_parts, body, f);
  state_->take_parts();
  state_->wait_until_done();
}

}  // namespace pydstp
