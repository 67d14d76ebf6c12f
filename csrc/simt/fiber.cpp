#include "simt/fiber.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "simt/asan.h"

#ifdef __x86_64__
// Saves the registers a call preserves on the old stack, takes them from the new one.
extern "C" void pydstp_switch_stack(void** save_pointer, void* new_pointer);
asm(R"(
    .text
    .hidden pydstp_switch_stack
    .globl pydstp_switch_stack
    .type pydstp_switch_stack, @function
pydstp_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size pydstp_switch_stack, .-pydstp_switch_stack
)");
#endif

namespace pydstp {
namespace simt {
namespace {

// Stacks outlive their fibers: a launch has hundreds, and fresh memory costs a page fault each.
thread_local std::vector<std::unique_ptr<char[]>> spare_stacks;

std::unique_ptr<char[]> take_stack(size_t num_bytes) {
  if (spare_stacks.empty()) return std::unique_ptr<char[]>(new char[num_bytes]);
  std::unique_ptr<char[]> stack = std::move(spare_stacks.back());
  spare_stacks.pop_back();
  return stack;
}

}  // namespace

Fiber::~Fiber() {
  if (stack_) spare_stacks.push_back(std::move(stack_));
}

void Fiber::start(void (*entry)()) {
  if (!stack_) stack_ = take_stack(kStackBytes);
  sanitizer_stack_ = stack_.get();
  sanitizer_bytes_ = kStackBytes;
  allow_memory(stack_.get(), kStackBytes);  // what the last use forbade
#ifdef __x86_64__
  // At `entry` the stack must look as after a call: 16-byte aligned, less one return address.
  const auto top = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) & ~uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  frame[7] = nullptr;
  stack_pointer_ = frame;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_from(Fiber& from) {
#ifdef PYDSTP_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, sanitizer_stack_, sanitizer_bytes_);
#endif
#ifdef __x86_64__
  pydstp_switch_stack(&from.stack_pointer_, stack_pointer_);
#else
  swapcontext(&from.context_, &context_);
#endif
#ifdef PYDSTP_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::arrive(Fiber& started_by) {
#ifdef PYDSTP_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &started_by.sanitizer_stack_,
                                  &started_by.sanitizer_bytes_);
#else
  (void)started_by;
#endif
}

}  // namespace simt
}  // namespace pydstp
