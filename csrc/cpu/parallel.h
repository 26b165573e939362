// The parallel loop over tasks that every kernel uses.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace mirrorgan {

// Calls work(begin, end) for parts of [0, tasks) in PyTorch's threads, and rethrows the first exception of a thread here.
// PyTorch's own loop would not keep the exception's type, and callers need to know std::bad_alloc.
template <typename Work>
void parallel_for(int64_t tasks, const Work& work) {
  std::exception_ptr first_error;
  std::atomic_flag has_error = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    try {
      work(begin, end);
    } catch (...) {
      if (!has_error.test_and_set()) {
        first_error = std::current_exception();
      }
    }
  });
  if (first_error) {
    std::rethrow_exception(first_error);
  }
}

}  // namespace mirrorgan
