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
  const Arguments a = arguments_of(kOp, dense_x, weight, bias, Epilogue::add);
  convolve_and_add(kOp, a, residual, out, x.scalar_type());
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("conv_add", TORCH_BOX(&mirrorgan::conv_add_cpu));
}
