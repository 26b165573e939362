// mirrorgan::glam_attention_mix on NVIDIA GPUs in bfloat16, for 32 channels in, up to 64 channels out and up to 32 words.
// What it computes is defined in mirrorgan_fast/ops/glam_attention_mix.py.

#include "glam_attention_mix.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "launch.h"

namespace mirrorgan {
namespace {

using namespace cuda;

constexpr const char* kOp = "glam_attention_mix";

template <bool kSentence>
__global__ void __launch_bounds__(attention_mix::kThreads, 4)
    glam_attention_mix_kernel(const attention_mix::Arguments a) {
  __shared__ attention_mix::Shared shared;
  attention_mix::Block<Device, kSentence>(a, shared, blockIdx.x).run();
}

void glam_attention_mix_cuda(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    Tensor out) {
  constexpr int64_t kChannels = attention_mix::kChannels;
  const auto check = [](const char* argument, const Tensor& tensor, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
    MIRRORGAN_CHECK(tensor.scalar_type() == dtype, kOp, argument, tensor.scalar_type(), dtype);
    MIRRORGAN_CHECK_SHAPE(kOp, argument, tensor, sizes);
  };
  MIRRORGAN_CHECK(features.dim() == 4 && features.size(1) == kChannels, kOp, "features", shape_text(features.sizes()),
                  "(N, 32, H, W)");
  const int64_t samples = features.size(0), pixels = features.size(2) * features.size(3);
  MIRRORGAN_CHECK(words.dim() == 3 && words.size(1) <= attention_mix::kWords, kOp, "words", shape_text(words.sizes()),
                  "(N, T, 32) with T up to 32");
  const int64_t count = words.size(1);
  check("features", features, ScalarType::BFloat16, {samples, kChannels, features.size(2), features.size(3)});
  check("words", words, ScalarType::BFloat16, {samples, count, kChannels});
  check("mask", mask, ScalarType::Bool, {samples, count});
  MIRRORGAN_CHECK(mix.dim() == 2 && mix.size(0) <= attention_mix::kColumns, kOp, "mix", shape_text(mix.sizes()),
                  "at most 64 rows");
  check("mix", mix, ScalarType::BFloat16, {mix.size(0), kChannels * (sentence ? 3 : 2)});
  check_map(kOp, "out", out, ScalarType::BFloat16, {samples, mix.size(0), features.size(2), features.size(3)});
  MIRRORGAN_CHECK(!sentence_weight || sentence, kOp, "sentence_weight", "a weight", "None without a sentence");
  std::optional<Tensor> dense_sentence, dense_weight;
  if (sentence) {
    check("sentence", *sentence, ScalarType::BFloat16, {samples, kChannels});
    dense_sentence = torch::stable::contiguous(*sentence);
  }
  if (sentence_weight) {
    check("sentence_weight", *sentence_weight, ScalarType::BFloat16, {kChannels, kChannels});
    dense_weight = torch::stable::contiguous(*sentence_weight);
  }
  check_device(kOp, features,
               {{"words", &words},
                {"mask", &mask},
                {"sentence", sentence ? &*sentence : nullptr},
                {"sentence_weight", sentence_weight ? &*sentence_weight : nullptr},
                {"mix", &mix},
                {"out", &out}});
  if (samples * pixels * mix.size(0) == 0) {
    return;
  }
  const Tensor dense_features = torch::stable::contiguous(features, MemoryFormat::ChannelsLast);
  const Tensor dense_words = torch::stable::contiguous(words), dense_mask = torch::stable::contiguous(mask);
  const Tensor dense_mix = torch::stable::contiguous(mix);
  const attention_mix::Arguments a{
      static_cast<const uint16_t*>(dense_features.const_data_ptr()),
      static_cast<const uint16_t*>(dense_words.const_data_ptr()),
      static_cast<const bool*>(dense_mask.const_data_ptr()),
      bfloat16_of(dense_sentence),
      bfloat16_of(dense_weight),
      static_cast<const uint16_t*>(dense_mix.const_data_ptr()),
      static_cast<uint16_t*>(out.mutable_data_ptr()),
      pixels,
      static_cast<int>(count),
      static_cast<int>(mix.size(0)),
      mix.size(0) % 8 == 0 && is_aligned(out.mutable_data_ptr()),
  };
  MIRRORGAN_CHECK(reinterpret_cast<uintptr_t>(a.features) % 4 == 0, kOp, "features", "an address that is not a multiple of 4",
                  "a multiple of 4");
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const int64_t blocks_per_sample = (pixels + attention_mix::kBlockPixels - 1) / attention_mix::kBlockPixels;
  const unsigned grid = blocks_of(kOp, samples * blocks_per_sample);
  if (sentence) {
    glam_attention_mix_kernel<true><<<grid, attention_mix::kThreads, 0, current_stream(kOp, features)>>>(a);
  } else {
    glam_attention_mix_kernel<false><<<grid, attention_mix::kThreads, 0, current_stream(kOp, features)>>>(a);
  }
  check_launch(kOp);
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CUDA, library) {
  library.impl("glam_attention_mix", TORCH_BOX(&mirrorgan::glam_attention_mix_cuda));
}
