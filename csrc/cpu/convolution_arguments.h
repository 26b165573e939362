// Checks the tensors of the convolution ops and turns them into the arguments of the engine in convolution.h.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>

#include "../checks.h"
#include "convolution.h"

namespace mirrorgan::convolution {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The arguments of a layer with packed weights, for maps with this many channels. They point into the tensors.
inline Arguments layer_of(
    const char* op, const Tensor& weight, const Tensor& bias, Epilogue epilogue, ScalarType dtype, int64_t channels) {
  MIRRORGAN_CHECK(weight.scalar_type() == dtype, op, "weight", weight.scalar_type(), dtype);
  MIRRORGAN_CHECK(weight.dim() == 7 && weight.is_contiguous(), op, "weight", shape_text(weight.sizes()),
                  "packed weights, contiguous");
  MIRRORGAN_CHECK(bias.scalar_type() == ScalarType::Float && bias.dim() == 1 && bias.is_contiguous(), op, "bias",
                  shape_text(bias.sizes()), "contiguous Float of one dimension");
  Arguments a{};
  a.weight = weight.const_data_ptr();
  a.bias = static_cast<const float*>(bias.const_data_ptr());
  a.channels = channels;
  a.blocks = weight.size(1);
  a.steps = weight.size(2) * weight.size(3);
  a.out_channels = epilogue == Epilogue::glu ? bias.numel() / 2 : bias.numel();
  const int64_t block_channels = epilogue == Epilogue::glu ? kHalf : kColumns;
  const int64_t blocks = divide_up(a.out_channels, block_channels);
  MIRRORGAN_CHECK(a.channels > 0, op, "x", "no channels", "at least one");
  const bool wide = dtype == ScalarType::Float;
  const int64_t parts = weight.size(0);
  a.products = parts == 9 || parts == (wide ? 36 : 16) ? parts : 0;
  a.phases = a.products == 9 || parts == 4 ? 4 : 1;
  a.taps = a.phases == 4 ? 4 : a.products == 0 && weight.size(2) == 1 ? 1 : 9;
  // In float32, plain taps are only for images and for transposed convolutions.
  const bool may_have_taps = !wide || a.phases == 4 || (epilogue != Epilogue::glu && a.out_channels <= kImageChannels);
  MIRRORGAN_CHECK(a.products > 0 || a.taps == 1 || may_have_taps, op, "weight", shape_text(weight.sizes()),
                  "Winograd's form in Float");
  MIRRORGAN_CHECK_SHAPE(op, "weight", weight,
                        {a.products > 0 ? parts : a.phases, blocks, a.products > 0 ? 1 : a.taps,
                         divide_up(a.channels, kDepth), 2, wide ? kDepth : kHalf, wide ? kHalf : kDepth});
  return a;
}

// The arguments of a convolution of `x`, which must be dense in channels_last order. They point into the tensors.
inline Arguments arguments_of(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, Epilogue epilogue) {
  const ScalarType dtype = x.scalar_type();
  MIRRORGAN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, op, "x", dtype,
                  "Float or BFloat16, which the compiled CPU kernel takes");
  MIRRORGAN_CHECK(x.dim() == 4, op, "x", shape_text(x.sizes()), "(N, C, H, W)");
  check_map(op, "x", x, dtype, {x.size(0), x.size(1), x.size(2), x.size(3)});
  Arguments a = layer_of(op, weight, bias, epilogue, dtype, x.size(1));
  a.x = x.const_data_ptr();
  a.samples = x.size(0);
  a.height = x.size(2);
  a.width = x.size(3);
  a.out_pitch = a.width * a.scale();
  return a;
}

inline void convolve(const Arguments& a, Epilogue epilogue, ScalarType dtype) {
  if (a.samples * a.height * a.width * a.out_channels == 0) {
    return;
  }
  if (dtype == ScalarType::BFloat16) {
    convolve<bfloat16_bits>(a, epilogue);
  } else {
    convolve<float>(a, epilogue);
  }
}

// Convolves into `out`, which has the right size for the arguments, and adds `residual` if there is one.
inline void convolve_and_add(
    const char* op, Arguments a, const std::optional<Tensor>& residual, Tensor& out, ScalarType dtype) {
  const int64_t scale = a.scale();
  const std::initializer_list<int64_t> shape{a.samples, a.out_channels, a.height * scale, a.width * scale};
  check_map(op, "out", out, dtype, shape);
  std::optional<Tensor> dense_residual;
  if (residual) {
    dense_residual = torch::stable::contiguous(*residual, MemoryFormat::ChannelsLast);
    check_map(op, "residual", *dense_residual, dtype, shape);
    a.residual = dense_residual->const_data_ptr();
  }
  a.out = out.mutable_data_ptr();
  convolve(a, Epilogue::add, dtype);
}

}  // namespace mirrorgan::convolution
