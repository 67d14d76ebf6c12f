// A stack that can be switched to and away from: ten lines of assembly on x86-64, ucontext
// elsewhere. Under AddressSanitizer every switch is announced.
#pragma once

#include <cstddef>
#include <memory>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace pydstp {
namespace simt {

class Fiber {
 public:
  Fiber() = default;  // stands for the thread that is already running
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber call `entry`, which must never return, at the next switch to it. Whatever it
  // ran before is forgotten.
  void start(void (*entry)());

  // Leaves `from`, which is running, and continues here. Returns when somebody switches to `from`.
  void switch_from(Fiber& from);

  // To be called first thing in `entry`, with the fiber that started this one.
  static void arrive(Fiber& started_by);

 private:
  static constexpr size_t kStackBytes = 64 * 1024;

  std::unique_ptr<char[]> stack_;
  const void* sanitizer_stack_ = nullptr;
  size_t sanitizer_bytes_ = 0;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace simt
}  // namespace pydstp
