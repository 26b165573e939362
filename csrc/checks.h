// The only check macros. A failed check names the op, the argument, what was found and what is wanted, and reaches Python
// as a ValueError.

#pragma once

#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace mirrorgan {

// "(8, 32, 64, 64)": a shape as PyTorch users write it.
inline std::string shape_text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) {
    text << (i == 0 ? "" : ", ") << sizes[i];
  }
  text << ')';
  return text.str();
}

template <typename Found, typename Wanted>
[[noreturn]] void refuse(const char* op, const char* argument, const Found& found, const Wanted& wanted) {
  std::ostringstream text;
  text << op << ": " << argument << ": found " << found << ", wanted " << wanted;
  throw std::invalid_argument(text.str());
}

}  // namespace mirrorgan

#define MIRRORGAN_CHECK(condition, op, argument, found, wanted) \
  do {                                                          \
    if (!(condition)) {                                         \
      ::mirrorgan::refuse(op, argument, found, wanted);         \
    }                                                           \
  } while (false)

// The shape of `tensor` (named `argument`) must be the braced list that follows.
#define MIRRORGAN_CHECK_SHAPE(op, argument, tensor, ...)                             \
  do {                                                                               \
    const std::initializer_list<int64_t> wanted_ = __VA_ARGS__;                      \
    const torch::headeronly::IntHeaderOnlyArrayRef wanted_sizes_(wanted_);           \
    if (!(tensor).sizes().equals(wanted_sizes_)) {                                   \
      ::mirrorgan::refuse(op, argument, ::mirrorgan::shape_text((tensor).sizes()),   \
                          ::mirrorgan::shape_text(wanted_sizes_));                   \
    }                                                                                \
  } while (false)
