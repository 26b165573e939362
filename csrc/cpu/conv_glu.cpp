// mirrorgan::conv_glu on the CPU. What it computes is defined in mirrorgan_fast/ops/conv_glu.py.

#include <torch/csrc/stable/library.h>

#include "convolution_arguments.h"

namespace mirrorgan {
namespace {

using namespace convolution;

void conv_glu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out) {
  constexpr const char* kOp = "conv_glu";
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  MIRRORGAN_CHECK(bias.numel() % 2 == 0, kOp, "bias", shape_text(bias.sizes()), "an even size");
  Arguments a = arguments_of(kOp, dense_x, weight, bias, Epilogue::glu);
  check_map(kOp, "out", out, x.scalar_type(), {a.samples, a.out_channels, a.height * a.scale(), a.width * a.scale()});
  a.out = out.mutable_data_ptr();
  convolution::convolve(a, Epilogue::glu, x.scalar_type());
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("conv_glu", TORCH_BOX(&mirrorgan::conv_glu_cpu));
}
