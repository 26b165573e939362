// conv_glu and conv_add for 64 channels on Hopper, with wgmma. conv_wgmma.h has what a block of threads does.

#include "conv_wgmma.h"

#include <optional>

#include "conv_wgmma_launch.h"

namespace mirrorgan::cuda::conv_wgmma {
namespace {

template <int kForm>
__global__ void __launch_bounds__(kThreads, 1) conv_wgmma_kernel(const Arguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<Device, kForm>*>(memory);
  Block<Device, kForm> block{a, shared};
  if (threadIdx.x == 0) {
    block.prepare();
  }
  __syncthreads();
  // The shuffle tells the compiler that the value is the same in all lanes, so that it uses uniform registers.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kLanesOfWarp, 0);
  const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  // The group that only copies gives registers to the other groups.
  if (warp < kWarpsOfGroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    block.read(first, blocks);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    block.read_weight(warp - kWarpsOfGroup);
    Device::show_to_products();
    asm volatile("bar.sync 1, %0;" ::"n"(kMultiplying * kThreadsOfGroup) : "memory");
    block.multiply(warp / kWarpsOfGroup - 1, first, blocks);
  }
#else
  __trap();  // not built for this GPU; has_wgmma() prevents the launch
#endif
}

template <int kForm>
void launch(const char* op, const Tensor& x, Arguments a) {
  static_assert(sizeof(Shared<Device, kForm>) <= 227 * 1024);
  const int64_t tiles = x.size(0) * tiles_along(a.height) * tiles_along(a.width);
  if (tiles == 0) {
    return;
  }
  a.tiles = static_cast<int>(blocks_of(op, 2 * tiles) / 2);  // with room for the index of the next tile
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  int processors = 0;
  MIRRORGAN_CHECK(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device_index()) == cudaSuccess &&
          cudaFuncSetAttribute(conv_wgmma_kernel<kForm>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared<Device, kForm>)) == cudaSuccess,
      op, "device", x.get_device_index(), "a GPU with enough shared memory per block");
  const auto blocks = static_cast<unsigned>(a.tiles < processors ? a.tiles : processors);
  conv_wgmma_kernel<kForm><<<blocks, kThreads, sizeof(Shared<Device, kForm>), current_stream(op, x)>>>(a);
  check_launch(op);
}

bool is_aligned_tensor(const Tensor& tensor) { return is_aligned(tensor.const_data_ptr()); }

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

bool conv_glu(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& out) {
  const int64_t phases = weight.size(0), columns = phases == 4 ? 64 : 128;
  if (x.size(1) != kChannels || bias.numel() != columns || !has_wgmma(x) || !is_aligned_tensor(x) ||
      !is_aligned_tensor(weight) || !is_aligned_tensor(out)) {
    return false;
  }
  if (phases == 4) {
    launch<kGluUp>(op, x, arguments(x, weight, bias, out));
  } else {
    launch<kGlu>(op, x, arguments(x, weight, bias, out));
  }
  return true;
}

void conv_add(
    const char* op,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor& out) {
  Arguments a = arguments(x, weight, bias, out);
  if (residual) {
    a.residual = static_cast<const uint16_t*>(residual->const_data_ptr());
  }
  const bool aligned = is_aligned_tensor(x) && is_aligned_tensor(weight) && is_aligned_tensor(out) &&
                       (!residual || is_aligned_tensor(*residual));
  MIRRORGAN_CHECK(aligned, op, "maps and weight", "an unaligned address", "addresses that are multiples of 16 bytes");
  launch<kAdd>(op, x, a);
}

}  // namespace mirrorgan::cuda::conv_wgmma
