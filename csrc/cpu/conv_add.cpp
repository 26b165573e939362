// mirrorgan::conv_add on the CPU. What it computes is defined in mirrorgan_fast/ops/conv_add.py.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "convolution_arguments.h"

namespace mirrorgan {
namespace {

using namespace convolution;

void conv_add_cpu(
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor out) {
  constexpr const char* kOp = "conv_add";
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(kOp, dense_x, weight, bias, Epilogue::add);
  MIRRORGAN_CHECK(a.phases == 1, kOp, "weight", shape_text(weight.sizes()), "weights packed without upsample");
  check_map(kOp, "out", out, x.scalar_type(), {a.samples, a.out_channels, a.height, a.width});
  std::optional<Tensor> dense_residual;
  if (residual) {
    dense_residual = torch::stable::contiguous(*residual, MemoryFormat::ChannelsLast);
    check_map(kOp, "residual", *dense_residual, x.scalar_type(), {a.samples, a.out_channels, a.height, a.width});
    a.residual = dense_residual->const_data_ptr();
  }
  a.out = out.mutable_data_ptr();
  convolution::convolve(a, Epilogue::add, x.scalar_type());
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("conv_add", TORCH_BOX(&mirrorgan::conv_add_cpu));
}
