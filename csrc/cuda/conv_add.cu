// mirrorgan::conv_add on NVIDIA GPUs in bfloat16, for 64 channels on Hopper. What it computes is defined in
// mirrorgan_fast/ops/conv_add.py. The kernel is in conv_wgmma.cu.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "conv_wgmma.h"
#include "conv_wgmma_launch.h"

namespace mirrorgan {
namespace {

using namespace cuda;

constexpr const char* kOp = "conv_add";

void conv_add_cuda(
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor out) {
  constexpr int64_t kChannels = conv_wgmma::kChannels;
  MIRRORGAN_CHECK(x.scalar_type() == ScalarType::BFloat16, kOp, "x", x.scalar_type(), ScalarType::BFloat16);
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, 64, H, W)");
  MIRRORGAN_CHECK_SHAPE(kOp, "x", x, {x.size(0), kChannels, x.size(2), x.size(3)});
  check_contiguous(kOp, "weight", weight, ScalarType::BFloat16, {1, 9, kChannels, kChannels});
  check_contiguous(kOp, "bias", bias, ScalarType::Float, {kChannels});
  check_map(kOp, "out", out, ScalarType::BFloat16, {x.size(0), kChannels, x.size(2), x.size(3)});
  const Tensor dense = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  std::optional<Tensor> dense_residual;
  if (residual) {
    dense_residual = torch::stable::contiguous(*residual, MemoryFormat::ChannelsLast);
    check_map(kOp, "residual", *dense_residual, ScalarType::BFloat16, {x.size(0), kChannels, x.size(2), x.size(3)});
  }
  check_device(kOp, x,
               {{"weight", &weight}, {"bias", &bias}, {"residual", residual ? &*residual : nullptr}, {"out", &out}});
  MIRRORGAN_CHECK(conv_wgmma::has_wgmma(x), kOp, "device", x.get_device_index(),
                  "a Hopper GPU, and an extension built for 9.0a");
  conv_wgmma::conv_add(kOp, dense, weight, bias, dense_residual, out);
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CUDA, library) {
  library.impl("conv_add", TORCH_BOX(&mirrorgan::conv_add_cuda));
}
