// What every CUDA op does around the launch of its kernel.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "../checks.h"

namespace mirrorgan::cuda {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// All tensors must be on the GPU of the first argument; null stands for a missing tensor. This is called after all other
// checks, so that a test without a GPU reaches them.
inline void check_device(
    const char* op,
    const Tensor& first,
    std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  MIRRORGAN_CHECK(first.is_cuda(), op, "device", "no GPU", "a tensor on a GPU");
  for (const auto& [argument, tensor] : others) {
    MIRRORGAN_CHECK(tensor == nullptr || (tensor->is_cuda() && tensor->get_device_index() == first.get_device_index()), op,
                    argument, "another device", "the device of the first argument");
  }
}

inline const uint16_t* bfloat16_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const uint16_t*>(tensor->const_data_ptr()) : nullptr;
}

// PyTorch's current stream of the tensor's device, which may be capturing a CUDA graph.
inline cudaStream_t current_stream(const char* op, const Tensor& tensor) {
  void* stream = nullptr;
  MIRRORGAN_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0, op, "device",
                  tensor.get_device_index(), "a device with a current stream");
  return static_cast<cudaStream_t>(stream);
}

// Called after a launch. It does not wait for the kernel, so it only checks that the launch succeeded.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  MIRRORGAN_CHECK(error == cudaSuccess, op, "launch", cudaGetErrorString(error), "a successful launch");
}

inline unsigned blocks_of(const char* op, int64_t blocks) {
  MIRRORGAN_CHECK(blocks < (int64_t{1} << 31), op, "blocks", blocks, "fewer than 2^31: a smaller batch");
  return static_cast<unsigned>(blocks);
}

}  // namespace mirrorgan::cuda
