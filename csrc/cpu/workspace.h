// Memory that a kernel keeps from call to call.

#pragma once

#include <cstdint>
#include <vector>

namespace mirrorgan {

// Memory of one thread, aligned to a cache line. Its content is left over from the previous call.
template <typename T>
class Workspace {
 public:
  T* at_least(int64_t size) {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (static_cast<int64_t>(storage_.size()) < size + kLine) {
      storage_.assign(static_cast<size_t>(size + kLine), T{});
    }
    T* start = storage_.data();
    return start + (kLine - reinterpret_cast<uintptr_t>(start) / sizeof(T) % kLine) % kLine;
  }

 private:
  std::vector<T> storage_;
};

}  // namespace mirrorgan
