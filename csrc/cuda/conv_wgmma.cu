// conv_glu of 64 channels and conv_add on Hopper, by the products of warpgroups; what they do is in conv_wgmma.h.

#include "conv_wgmma.h"
#include "launch.h"

#include <initializer_list>
#include <optional>

namespace mirrorgan {
namespace {

using namespace cuda;
using conv_wgmma::Arguments;
using conv_wgmma::Block;
using conv_wgmma::Shared;

template <int kForm>
__global__ void __launch_bounds__(conv_wgmma::kThreads, 1) conv_wgmma_kernel(const Arguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<Device, kForm>*>(memory);
  Block<Device, kForm> block{a, shared};
  if (threadIdx.x == 0) {
    block.prepare();
  }
  __syncthreads();
  // The same in all lanes, said so that the compiler keeps what follows from it in uniform registers.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kLanesOfWarp, 0);
  const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  // Registers of the group that only copies go to the others.
  if (warp < conv_wgmma::kWarpsOfGroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    block.read(first, blocks);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    block.read_weight(warp - conv_wgmma::kWarpsOfGroup);
    Device::show_to_products();
    asm volatile("bar.sync 1, %0;" ::"n"(conv_wgmma::kMultiplying * conv_wgmma::kThreadsOfGroup) : "memory");
    block.multiply(warp / conv_wgmma::kWarpsOfGroup - 1, first, blocks);
  }
#else
  __trap();  // not built for this GPU, and has_wgmma() knows
#endif
}

template <int kForm>
void launch(const char* op, const Tensor& x, Arguments a) {
  static_assert(sizeof(Shared<Device, kForm>) <= 227 * 1024);
  const int64_t tiles = x.size(0) * conv_wgmma::tiles_along(a.height) * conv_wgmma::tiles_along(a.width);
  if (tiles == 0) {
    return;
  }
  a.tiles = static_cast<int>(blocks_of(op, 2 * tiles) / 2);  // so that the next tile has a number, too
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  int processors = 0;
  MIRRORGAN_CHECK(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device_index()) == cudaSuccess &&
          cudaFuncSetAttribute(conv_wgmma_kernel<kForm>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared<Device, kForm>)) == cudaSuccess,
      op, "device", x.get_device_index(), "one whose kernels may have this much shared memory");
  const auto blocks = static_cast<unsigned>(a.tiles < processors ? a.tiles : processors);
  conv_wgmma_kernel<kForm><<<blocks, conv_wgmma::kThreads, sizeof(Shared<Device, kForm>), current_stream(op, x)>>>(a);
  check_launch(op);
}

// Whether this build and a tensor's GPU have the products of warpgroups.
bool has_wgmma(const Tensor& x) {
#if defined(MIRRORGAN_HAS_WGMMA)
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, x.get_device_index()) == cudaSuccess &&
         major == 9;
#else
  static_cast<void>(x);
  return false;
#endif
}

bool is_of_eights(const Tensor& tensor) { return begins_an_eight(tensor.const_data_ptr()); }

Arguments arguments(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& out) {
  return {
      static_cast<const uint16_t*>(x.const_data_ptr()),
      static_cast<const uint16_t*>(weight.const_data_ptr()),
      static_cast<const float*>(bias.const_data_ptr()),
      nullptr,
      static_cast<uint16_t*>(out.mutable_data_ptr()),
      0,
      static_cast<int>(x.size(2)),
      static_cast<int>(x.size(3)),
  };
}

}  // namespace

bool conv_glu_wgmma(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out) {
  const int64_t phases = weight.size(0), columns = phases == 4 ? 64 : 128;
  if (x.size(1) != conv_wgmma::kChannels || bias.numel() != columns || !has_wgmma(x) || !is_of_eights(x) ||
      !is_of_eights(weight) || !is_of_eights(out)) {
    return false;
  }
  if (phases == 4) {
    launch<conv_wgmma::kGluUp>(op, x, arguments(x, weight, bias, out));
  } else {
    launch<conv_wgmma::kGlu>(op, x, arguments(x, weight, bias, out));
  }
  return true;
}

void conv_add_cuda(
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor out) {
  constexpr const char* kOp = "conv_add";
  constexpr int64_t kChannels = conv_wgmma::kChannels;
  check_dtype(kOp, "x", x, ScalarType::BFloat16);
  check_dtype(kOp, "weight", weight, ScalarType::BFloat16);
  check_dtype(kOp, "bias", bias, ScalarType::Float);
  check_dtype(kOp, "out", out, ScalarType::BFloat16);
  MIRRORGAN_CHECK(has_wgmma(x), kOp, "device", x.get_device_index(), "a Hopper GPU, and a build for 9.0a");
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, 64, H, W)");
  const std::initializer_list<int64_t> map{x.size(0), kChannels, x.size(2), x.size(3)};
  MIRRORGAN_CHECK_SHAPE(kOp, "x", x, map);
  MIRRORGAN_CHECK_SHAPE(kOp, "weight", weight, {1, 9, kChannels, kChannels});
  MIRRORGAN_CHECK_SHAPE(kOp, "bias", bias, {kChannels});
  MIRRORGAN_CHECK(weight.is_contiguous() && bias.is_contiguous(), kOp, "weight and bias", "gaps", "contiguous tensors");
  MIRRORGAN_CHECK_SHAPE(kOp, "out", out, map);
  const Tensor dense = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments(dense, weight, bias, out);
  std::optional<Tensor> added;
  if (residual) {
    check_dtype(kOp, "residual", *residual, ScalarType::BFloat16);
    MIRRORGAN_CHECK_SHAPE(kOp, "residual", *residual, map);
    added = torch::stable::contiguous(*residual, MemoryFormat::ChannelsLast);
    a.residual = static_cast<const uint16_t*>(added->const_data_ptr());
  }
  MIRRORGAN_CHECK(is_of_eights(dense) && is_of_eights(weight) && is_of_eights(out) && (!added || is_of_eights(*added)),
                  kOp, "maps and weight", "an address between", "all to begin at multiples of 16 bytes");
  launch<conv_wgmma::kAdd>(kOp, dense, a);
}

}  // namespace mirrorgan
