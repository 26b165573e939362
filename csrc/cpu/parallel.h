// The loop over tasks that every kernel has.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace mirrorgan {

// Calls work(begin, end) for parts of [0, tasks), each in one of PyTorch's threads. What it throws is thrown here: PyTorch's
// own loop would only tell that something was, and that memory is short has to be known.
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
