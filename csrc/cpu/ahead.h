// Memory that will be read soon.
#pragma once

#include "cpu/vec.h"

namespace pydstp {
namespace PYDSTP_TIER {

constexpr int kAskedBytes = 256;  // at a time: four cache lines

// The same columns of some rows.
template <typename T>
struct Columns {
  const T* const* rows;
  int num_rows;
  int64_t begin, end;
};

// Asks for columns of rows and then for others, a little at a time while something else is computed
// with. They go to the second cache, which was faster than the first where it was tried.
template <typename T>
class Ahead {
 public:
  Ahead(const Columns<T>& first, const Columns<T>& second)
      : now_(first), later_(second), at_(first.begin) {}

  void ask() {
    if (row_ == now_.num_rows) {
      now_ = later_, later_.num_rows = 0;
      row_ = 0, at_ = now_.begin;
      if (now_.num_rows == 0) return;
    }
    const char* p = reinterpret_cast<const char*>(now_.rows[row_] + at_);
    for (int i = 0; i < kAskedBytes; i += 64) __builtin_prefetch(p + i, 0, 2);
    at_ += kAskedBytes / static_cast<int64_t>(sizeof(T));
    if (at_ >= now_.end) ++row_, at_ = now_.begin;
  }

  void ask_for_all() {
    while (row_ < now_.num_rows || later_.num_rows) ask();
  }

 private:
  Columns<T> now_, later_;
  int row_ = 0;
  int64_t at_;
};

}  // namespace PYDSTP_TIER
}  // namespace pydstp
