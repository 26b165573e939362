// conv_glu and conv_add of 64 channels on Hopper, by the products of warpgroups; what they do is in conv_wgmma.h.

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
  // The same in all lanes, said so that the compiler keeps what follows from it in uniform registers.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kLanesOfWarp, 0);
  const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  // Registers of the group that only copies go to the others.
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
  __trap();  // not built for this GPU, and has_wgmma() knows
#endif
}

template <int kForm>
void launch(const char* op, const Tensor& x, Arguments a) {
  static_assert(sizeof(Shared<Device, kForm>) <= 227 * 1024);
  const int64_t tiles = x.size(0) * tiles_along(a.height) * tiles_along(a.width);
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
  conv_wgmma_kernel<kForm><<<blocks, kThreads, sizeof(Shared<Device, kForm>), current_stream(op, x)>>>(a);
  check_launch(op);
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
  if (x.size(1) != kChannels || bias.numel() != columns || !has_wgmma(x) || !is_of_eights(x) ||
      !is_of_eights(weight) || !is_of_eights(out)) {
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
  MIRRORGAN_CHECK(is_of_eights(x) && is_of_eights(weight) && is_of_eights(out) && (!residual || is_of_eights(*residual)),
                  op, "maps and weight", "an address between", "all to begin at multiples of 16 bytes");
  launch<kAdd>(op, x, a);
}

}  // namespace mirrorgan::cuda::conv_wgmma
