// mirrorgan::glam_attention on the CPU. What it computes is defined in mirrorgan_fast/ops/glam_attention.py.
//
// One pass over the feature map: a block of kBlock pixels is read once into a float32 tile (channels x pixels), both
// attentions are computed on it while it is in the first-level cache, and the three parts of the result are written.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../checks.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "pixel_tiles.h"
#include "vectors.h"
#include "workspace.h"

namespace mirrorgan {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "glam_attention";

struct Arguments {
  const void* features;         // (N, C, H*W), or (N, H*W, C) if channels_last
  const void* words;            // (N, T, C)
  const uint8_t* mask;          // (N, T)
  const void* sentence;         // (N, C) or null
  const void* sentence_weight;  // (C, C) or null
  void* out;                    // like features, with 2C or 3C channels
  int64_t samples, channels, words_per_sample, pixels, out_channels;
  bool channels_last;

  MapLayout features_layout() const {
    return {channels, pixels, channels_last};
  }
  MapLayout out_layout() const {
    return {out_channels, pixels, channels_last};
  }
};

// Copies the features to the first C channels of the result.
template <typename scalar_t>
MIRRORGAN_INLINE void copy_features(
    const scalar_t* features, scalar_t* out, const Arguments& a, int64_t first, int64_t valid) {
  const int64_t rows = a.channels_last ? valid : a.channels;
  const int64_t row_size = a.channels_last ? a.channels : valid;
  const int64_t source_stride = a.channels_last ? a.channels : a.pixels;
  const int64_t target_stride = a.channels_last ? a.out_channels : a.pixels;
  features += a.channels_last ? first * a.channels : first;
  out += a.channels_last ? first * a.out_channels : first;
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(out + row * target_stride, features + row * source_stride, row_size * sizeof(scalar_t));
  }
}

int64_t scratch_floats(const Arguments& a) {
  return 2 * a.channels * kBlock + a.words_per_sample * (kBlock + a.channels) + a.channels * (a.channels + 1);
}

// Computes one task: up to kBlocksPerTask blocks of one sample.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void attend(const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel, float* scratch) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t channels = a.channels;
  float* tile = scratch;
  float* result = tile + channels * kBlock;
  float* logits = result + channels * kBlock;
  float* keys = logits + a.words_per_sample * kBlock;
  float* weight = keys + a.words_per_sample * channels;
  float* sentence = weight + channels * channels;

  // Padding is left out rather than masked. So it takes no time, and NaN in it cannot reach the result.
  const auto* words = static_cast<const scalar_t*>(a.words) + sample * a.words_per_sample * channels;
  int64_t real_words = 0;
  for (int64_t t = 0; t < a.words_per_sample; ++t) {
    if (a.mask[sample * a.words_per_sample + t]) {
      for (int64_t c = 0; c < channels; ++c) {
        keys[real_words * channels + c] = to_float(words[t * channels + c]);
      }
      ++real_words;
    }
  }
  if (a.sentence != nullptr) {
    const auto* source = static_cast<const scalar_t*>(a.sentence) + sample * channels;
    for (int64_t c = 0; c < channels; ++c) {
      sentence[c] = to_float(source[c]);
    }
  }
  if (a.sentence_weight != nullptr) {
    const auto* source = static_cast<const scalar_t*>(a.sentence_weight);
    for (int64_t i = 0; i < channels * channels; ++i) {
      weight[i] = to_float(source[i]);
    }
  }

  const auto* features = static_cast<const scalar_t*>(a.features) + sample * channels * a.pixels;
  auto* out = static_cast<scalar_t*>(a.out) + sample * a.out_channels * a.pixels;
  for (int64_t first = first_pixel; first < end_pixel; first += kBlock) {
    const int64_t valid = end_pixel - first < kBlock ? end_pixel - first : kBlock;
    read_tile(tile, features, a.features_layout(), first, valid);
    copy_features(features, out, a, first, valid);

    if (real_words > 0) {
      multiply<Lanes>(logits, keys, channels, 1, tile, real_words, channels);
      softmax<Lanes>(logits, real_words);
    }
    multiply<Lanes>(result, keys, 1, channels, logits, channels, real_words);  // zero without real words
    write_tile(result, channels, out, a.out_layout(), channels, first, valid);

    if (a.sentence == nullptr) {
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < kBlock; p += Lanes) {
        *reinterpret_cast<Float*>(tile + c * kBlock + p) *= sentence[c];
      }
    }
    float* gate = tile;
    if (a.sentence_weight != nullptr) {
      multiply<Lanes>(result, weight, channels, 1, tile, channels, channels);
      gate = result;
    }
    softmax<Lanes>(gate, channels);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < kBlock; p += Lanes) {
        *reinterpret_cast<Float*>(gate + c * kBlock + p) *= sentence[c];
      }
    }
    write_tile(gate, channels, out, a.out_layout(), 2 * channels, first, valid);
  }
}

using Attend = void (*)(const Arguments&, int64_t, int64_t, int64_t, float*);

#define MIRRORGAN_ATTEND(name, scalar_t, lanes, target)                                                       \
  target void name(const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel, float* scratch) { \
    attend<scalar_t, lanes>(a, sample, first_pixel, end_pixel, scratch);                                      \
  }

#define MIRRORGAN_ATTENDS(set, lanes, target) \
  MIRRORGAN_ATTEND(attend_float_##set, float, lanes, target) \
  MIRRORGAN_ATTEND(attend_bfloat16_##set, bfloat16_bits, lanes, target)

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_ATTENDS)

void check_dtype(const char* argument, const Tensor& tensor, ScalarType wanted) {
  MIRRORGAN_CHECK(tensor.scalar_type() == wanted, kOp, argument, tensor.scalar_type(), wanted);
}

Tensor glam_attention_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight) {
  const ScalarType dtype = features.scalar_type();
  MIRRORGAN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, kOp, "features", dtype,
                  "Float or BFloat16, which the compiled CPU kernel takes");
  MIRRORGAN_CHECK(features.dim() == 4, kOp, "features", shape_text(features.sizes()), "(N, C, H, W)");
  MIRRORGAN_CHECK(words.dim() == 3, kOp, "words", shape_text(words.sizes()), "(N, T, C)");
  const int64_t samples = features.size(0), channels = features.size(1);
  const int64_t height = features.size(2), width = features.size(3), words_per_sample = words.size(1);
  check_dtype("words", words, dtype);
  MIRRORGAN_CHECK_SHAPE(kOp, "words", words, {samples, words_per_sample, channels});
  check_dtype("mask", mask, ScalarType::Bool);
  MIRRORGAN_CHECK_SHAPE(kOp, "mask", mask, {samples, words_per_sample});
  if (sentence) {
    check_dtype("sentence", *sentence, dtype);
    MIRRORGAN_CHECK_SHAPE(kOp, "sentence", *sentence, {samples, channels});
  }
  if (sentence_weight) {
    MIRRORGAN_CHECK(sentence.has_value(), kOp, "sentence_weight", "a weight", "None without a sentence");
    check_dtype("sentence_weight", *sentence_weight, dtype);
    MIRRORGAN_CHECK_SHAPE(kOp, "sentence_weight", *sentence_weight, {channels, channels});
  }

  // A map that is both contiguous and channels_last counts as contiguous, as in PyTorch.
  const bool channels_last = is_dense_channels_last(features) && !features.is_contiguous();
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const int64_t out_channels = (sentence ? 3 : 2) * channels;
  Tensor out = torch::stable::empty({samples, out_channels, height, width}, dtype, std::nullopt, features.device(),
                                    std::nullopt, format);
  if (out.numel() == 0) {
    return out;
  }

  const Tensor dense_features = torch::stable::contiguous(features, format);
  const Tensor dense_words = torch::stable::contiguous(words);
  const Tensor dense_mask = torch::stable::contiguous(mask);
  std::optional<Tensor> dense_sentence, dense_weight;
  Arguments a{};
  a.features = dense_features.const_data_ptr();
  a.words = dense_words.const_data_ptr();
  a.mask = static_cast<const uint8_t*>(dense_mask.const_data_ptr());
  if (sentence) {
    dense_sentence = torch::stable::contiguous(*sentence);
    a.sentence = dense_sentence->const_data_ptr();
  }
  if (sentence_weight) {
    dense_weight = torch::stable::contiguous(*sentence_weight);
    a.sentence_weight = dense_weight->const_data_ptr();
  }
  a.out = out.mutable_data_ptr();
  a.samples = samples;
  a.channels = channels;
  a.words_per_sample = words_per_sample;
  a.pixels = height * width;
  a.out_channels = out_channels;
  a.channels_last = channels_last;

  const Attend attend =
      dtype == ScalarType::BFloat16 ? MIRRORGAN_CHOSEN(attend_bfloat16) : MIRRORGAN_CHOSEN(attend_float);
  const int64_t task_pixels = kBlock * kBlocksPerTask;
  const int64_t tasks_per_sample = (a.pixels + task_pixels - 1) / task_pixels;
  parallel_for(samples * tasks_per_sample, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<float> workspace;
    float* scratch = workspace.at_least(scratch_floats(a));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = (task % tasks_per_sample) * task_pixels;
      const int64_t last = first + task_pixels < a.pixels ? first + task_pixels : a.pixels;
      attend(a, task / tasks_per_sample, first, last, scratch);
    }
  });
  return out;
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam_attention", TORCH_BOX(&mirrorgan::glam_attention_cpu));
}
