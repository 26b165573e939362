// The checks of all ops. A failed check names the op, the argument, what was found and what is wanted, and reaches Python
// as a ValueError.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace mirrorgan {

// "(8, 32, 64, 64)": a shape, or strides, as PyTorch users write it.
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

// `tensor`, whose name is `argument`, must have the shape in the braced list that follows.
#define MIRRORGAN_CHECK_SHAPE(op, argument, tensor, ...)                             \
  do {                                                                               \
    const std::initializer_list<int64_t> wanted_ = __VA_ARGS__;                      \
    const torch::headeronly::IntHeaderOnlyArrayRef wanted_sizes_(wanted_);           \
    if (!(tensor).sizes().equals(wanted_sizes_)) {                                   \
      ::mirrorgan::refuse(op, argument, ::mirrorgan::shape_text((tensor).sizes()),   \
                          ::mirrorgan::shape_text(wanted_sizes_));                   \
    }                                                                                \
  } while (false)

namespace mirrorgan {

// Whether a map (N, C, H, W) is dense in channels_last order. The stride of a dimension of size one has no meaning.
inline bool is_dense_channels_last(const torch::stable::Tensor& map) {
  if (map.numel() == 0) {
    return true;
  }
  int64_t dense = 1;
  for (const int64_t dimension : {1, 3, 2, 0}) {
    if (map.size(dimension) != 1 && map.stride(dimension) != dense) {
      return false;
    }
    dense *= map.size(dimension);
  }
  return true;
}

// The tensor must have this data type and shape, and be contiguous.
inline void check_contiguous(
    const char* op,
    const char* argument,
    const torch::stable::Tensor& tensor,
    torch::headeronly::ScalarType dtype,
    std::initializer_list<int64_t> sizes) {
  MIRRORGAN_CHECK(tensor.scalar_type() == dtype, op, argument, tensor.scalar_type(), dtype);
  MIRRORGAN_CHECK_SHAPE(op, argument, tensor, sizes);
  MIRRORGAN_CHECK(tensor.is_contiguous(), op, argument, "strides " + shape_text(tensor.strides()), "a contiguous tensor");
}

// The map must have this data type and shape, and be dense in channels_last order.
inline void check_map(
    const char* op,
    const char* argument,
    const torch::stable::Tensor& map,
    torch::headeronly::ScalarType dtype,
    std::initializer_list<int64_t> sizes) {
  MIRRORGAN_CHECK(map.scalar_type() == dtype, op, argument, map.scalar_type(), dtype);
  MIRRORGAN_CHECK_SHAPE(op, argument, map, sizes);
  MIRRORGAN_CHECK(is_dense_channels_last(map), op, argument, "strides " + shape_text(map.strides()),
                  "a dense channels_last map");
}

}  // namespace mirrorgan
