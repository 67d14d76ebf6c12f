// A pool of threads that sleep while there is nothing to do.
//
// Work is cut into contiguous parts before anything runs, so which thread takes a part never
// changes a result. There are a few parts per thread, and who is free takes the next one: a thread
// that a busy neighbour holds up delays a step by one part at most. Workers look for new work for a
// few tens of microseconds (a decode step calls hundreds of kernels back to back) and then sleep in
// the kernel.
//
// Several threads may call parallel_for on one pool; they take turns. In a forked child, where the
// workers do not exist, and after close(), everything runs on the calling thread.
#pragma once

#include <cstdint>

namespace pydstp {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // counts the calling thread; >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  void close();  // idempotent; joins the workers

  // Calls f(part_begin, part_end) over [begin, end), in a few parts per thread of at least `grain`
  // elements each. f must not throw and must not use the same pool.
  template <typename F>
  void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
    if (num_threads_ == 1 || end - begin <= grain) {
      if (begin < end) f(begin, end);
      return;
    }
    run(begin, end, grain, &call<F>, &f);
  }

 private:
  using Body = void (*)(const void* f, int64_t begin, int64_t end);

  template <typename F>
  static void call(const void* f, int64_t begin, int64_t end) {
    (*static_cast<const F*>(f))(begin, end);
  }

  void run(int64_t begin, int64_t end, int64_t grain, Body body, const void* f);

  struct State;
  State* state_;
  int num_threads_;
};

}  // namespace pydstp
