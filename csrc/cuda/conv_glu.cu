// mirrorgan::conv_glu on NVIDIA GPUs in bfloat16. What it computes is defined in mirrorgan_fast/ops/conv_glu.py.

#include "conv_glu.h"

#include <torch/csrc/stable/library.h>

#include "conv_wgmma_launch.h"
#include "launch.h"

namespace mirrorgan {
namespace {

using namespace cuda;

constexpr const char* kOp = "conv_glu";

template <int kPhases>
__global__ void __launch_bounds__(conv_glu::kThreads, 2) conv_glu_kernel(const conv_glu::Arguments a) {
  __shared__ conv_glu::Shared shared;
  conv_glu::Block<Device, kPhases>(a, shared, blockIdx.x, static_cast<int>(blockIdx.y)).run();
}

void conv_glu_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out) {
  MIRRORGAN_CHECK(x.scalar_type() == ScalarType::BFloat16, kOp, "x", x.scalar_type(), ScalarType::BFloat16);
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, C, H, W)");
  MIRRORGAN_CHECK(weight.dim() == 4, kOp, "weight", shape_text(weight.sizes()), "weights packed in rows");
  MIRRORGAN_CHECK(bias.numel() % 2 == 0, kOp, "bias", shape_text(bias.sizes()), "an even size");
  check_contiguous(kOp, "bias", bias, ScalarType::Float, {bias.numel()});
  const int64_t phases = weight.size(0), taps = weight.size(1);
  MIRRORGAN_CHECK((phases == 1 && taps == 9) || (phases == 4 && taps == 4), kOp, "weight", shape_text(weight.sizes()),
                  "one phase of 9 taps, or four phases of 4");
  check_contiguous(kOp, "weight", weight, ScalarType::BFloat16, {phases, taps, x.size(1), bias.numel()});
  const int64_t scale = phases == 4 ? 2 : 1;
  check_map(kOp, "out", out, ScalarType::BFloat16,
            {x.size(0), bias.numel() / 2, x.size(2) * scale, x.size(3) * scale});
  check_device(kOp, x, {{"weight", &weight}, {"bias", &bias}, {"out", &out}});
  const Tensor dense = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  if (conv_wgmma::conv_glu(kOp, dense, weight, bias, out)) {
    return;
  }

  const bool aligned = x.size(1) % 8 == 0 && bias.numel() % 16 == 0 && is_aligned(dense.const_data_ptr()) &&
                       is_aligned(weight.const_data_ptr()) && is_aligned(out.mutable_data_ptr());
  const conv_glu::Arguments a{
      static_cast<const uint16_t*>(dense.const_data_ptr()),
      static_cast<const uint16_t*>(weight.const_data_ptr()),
      static_cast<const float*>(bias.const_data_ptr()),
      static_cast<uint16_t*>(out.mutable_data_ptr()),
      static_cast<int>(x.size(2)),
      static_cast<int>(x.size(3)),
      static_cast<int>(x.size(1)),
      static_cast<int>(bias.numel()),
      aligned,
  };
  const auto divide_up = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
  const int64_t tiles = x.size(0) * divide_up(a.height, conv_glu::kRows) * divide_up(a.width, conv_glu::kPixels);
  if (tiles == 0) {
    return;
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const dim3 grid(blocks_of(kOp, tiles), static_cast<unsigned>(divide_up(a.columns, conv_glu::kColumns)));
  if (phases == 4) {
    conv_glu_kernel<4><<<grid, conv_glu::kThreads, 0, current_stream(kOp, x)>>>(a);
  } else {
    conv_glu_kernel<1><<<grid, conv_glu::kThreads, 0, current_stream(kOp, x)>>>(a);
  }
  check_launch(kOp);
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CUDA, library) {
  library.impl("conv_glu", TORCH_BOX(&mirrorgan::conv_glu_cuda));
}
