// AddressSanitizer's view of memory, where it is switched on.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define PYDSTP_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PYDSTP_ASAN 1
#endif
#endif

#ifdef PYDSTP_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace pydstp {
namespace simt {

inline void forbid_memory([[maybe_unused]] const void* start, [[maybe_unused]] size_t bytes) {
#ifdef PYDSTP_ASAN
  __asan_poison_memory_region(start, bytes);
#endif
}

inline void allow_memory([[maybe_unused]] const void* start, [[maybe_unused]] size_t bytes) {
#ifdef PYDSTP_ASAN
  __asan_unpoison_memory_region(start, bytes);
#endif
}

}  // namespace simt
}  // namespace pydstp
