// mirrorgan::glam_attention and its backward on the CPU. What they compute is defined in
// mirrorgan_fast/ops/glam_attention.py.
//
// One pass over the feature map: a block of kBlock pixels is read once into a float32 tile (channels x pixels), both
// attentions are computed on it while it is in the first-level cache, and the three parts of the result are written. The
// backward computes them again, so it needs only the inputs, and writes nothing to memory but the gradients. What it sums
// over pixels it sums within a task first, and the tasks' sums in order, so the bits do not depend on the number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

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
  void* out;                    // like features, with 2C or 3C channels; backward: the gradient of features
  const void* grad_out;         // backward: the gradient of the result
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

// What the pixels of a sample are multiplied by, in float32.
struct Sample {
  float* keys;      // (real_words, C)
  float* weight;    // (C, C)
  float* sentence;  // (C)
  int64_t real_words;
};

int64_t sample_floats(const Arguments& a) {
  return (a.words_per_sample + a.channels + 1) * a.channels;
}

int64_t scratch_floats(const Arguments& a) {
  return (2 * a.channels + a.words_per_sample) * kBlock + sample_floats(a);
}

// Padding is left out rather than masked. So it takes no time, and NaN in it cannot reach the result.
template <typename scalar_t>
MIRRORGAN_INLINE Sample read_sample(const Arguments& a, int64_t sample, float* storage) {
  const int64_t channels = a.channels;
  Sample read{storage, storage + a.words_per_sample * channels, nullptr, 0};
  read.sentence = read.weight + channels * channels;
  const auto* words = static_cast<const scalar_t*>(a.words) + sample * a.words_per_sample * channels;
  for (int64_t t = 0; t < a.words_per_sample; ++t) {
    if (a.mask[sample * a.words_per_sample + t]) {
      for (int64_t c = 0; c < channels; ++c) {
        read.keys[read.real_words * channels + c] = to_float(words[t * channels + c]);
      }
      ++read.real_words;
    }
  }
  if (a.sentence != nullptr) {
    const auto* source = static_cast<const scalar_t*>(a.sentence) + sample * channels;
    for (int64_t c = 0; c < channels; ++c) {
      read.sentence[c] = to_float(source[c]);
    }
  }
  if (a.sentence_weight != nullptr) {
    const auto* source = static_cast<const scalar_t*>(a.sentence_weight);
    for (int64_t i = 0; i < channels * channels; ++i) {
      read.weight[i] = to_float(source[i]);
    }
  }
  return read;
}

// out = tile * sentence, channel by channel; adds to `out` if asked for. Both may be the same.
template <int Lanes>
MIRRORGAN_INLINE void scale_rows(float* out, const float* tile, const float* sentence, int64_t channels, bool adds) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = c * kBlock; p < (c + 1) * kBlock; p += Lanes) {
      Float& target = *reinterpret_cast<Float*>(out + p);
      const Float scaled = *reinterpret_cast<const Float*>(tile + p) * sentence[c];
      target = adds ? target + scaled : scaled;
    }
  }
}

// Computes one task: up to kBlocksPerTask blocks of one sample.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void attend(const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel, float* scratch) {
  const int64_t channels = a.channels;
  float* tile = scratch;
  float* result = tile + channels * kBlock;
  float* logits = result + channels * kBlock;
  const Sample of = read_sample<scalar_t>(a, sample, logits + a.words_per_sample * kBlock);
  const auto* features = static_cast<const scalar_t*>(a.features) + sample * channels * a.pixels;
  auto* out = static_cast<scalar_t*>(a.out) + sample * a.out_channels * a.pixels;
  for (int64_t first = first_pixel; first < end_pixel; first += kBlock) {
    const int64_t valid = end_pixel - first < kBlock ? end_pixel - first : kBlock;
    read_tile(tile, features, a.features_layout(), first, valid);
    copy_features(features, out, a, first, valid);

    if (of.real_words > 0) {
      multiply<Lanes>(logits, of.keys, channels, 1, tile, of.real_words, channels);
      softmax<Lanes>(logits, of.real_words);
    }
    multiply<Lanes>(result, of.keys, 1, channels, logits, channels, of.real_words);  // zero without real words
    write_tile(result, channels, out, a.out_layout(), channels, first, valid);

    if (a.sentence == nullptr) {
      continue;
    }
    scale_rows<Lanes>(tile, tile, of.sentence, channels, false);
    float* gate = tile;
    if (a.sentence_weight != nullptr) {
      multiply<Lanes>(result, of.weight, channels, 1, tile, channels, channels);
      gate = result;
    }
    softmax<Lanes>(gate, channels);
    scale_rows<Lanes>(gate, gate, of.sentence, channels, false);
    write_tile(gate, channels, out, a.out_layout(), 2 * channels, first, valid);
  }
}

// What the backward sums over the pixels of a task.
struct Sums {
  float* keys;      // (T, C), of which the first real_words rows are used
  float* gate;      // (C, C), of the gate's gradients times features
  float* sentence;  // (C)

  static int64_t floats(const Arguments& a) {
    return sample_floats(a);
  }
  static MIRRORGAN_INLINE Sums at(const Arguments& a, float* storage) {
    float* gate = storage + a.words_per_sample * a.channels;
    return {storage, gate, gate + a.channels * a.channels};
  }
};

int64_t backward_scratch_floats(const Arguments& a) {
  return (7 * a.channels + 2 * a.words_per_sample) * kBlock + sample_floats(a);
}

// Computes the gradients of one task: those of its pixels, and the sums over them.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void attend_backward(
    const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel, float* scratch, float* task_sums) {
  const int64_t channels = a.channels, size = channels * kBlock;
  float* f = scratch;
  float* f_by_pixel = f + size;
  float* grad_f = f_by_pixel + size;
  float* grad = grad_f + size;  // of Att^w, then of Att^s
  float* grad_by_pixel = grad + size;
  float* gate = grad_by_pixel + size;
  float* result = gate + size;
  float* shares = result + size;
  float* grad_shares = shares + a.words_per_sample * kBlock;
  const Sample of = read_sample<scalar_t>(a, sample, grad_shares + a.words_per_sample * kBlock);
  const Sums sums = Sums::at(a, task_sums);

  const auto* features = static_cast<const scalar_t*>(a.features) + sample * channels * a.pixels;
  const auto* grad_out = static_cast<const scalar_t*>(a.grad_out) + sample * a.out_channels * a.pixels;
  auto* grad_features = static_cast<scalar_t*>(a.out) + sample * channels * a.pixels;
  for (int64_t first = first_pixel; first < end_pixel; first += kBlock) {
    const int64_t valid = end_pixel - first < kBlock ? end_pixel - first : kBlock;
    read_tile(f, features, a.features_layout(), first, valid);
    transpose_tile(f_by_pixel, f, channels);
    read_tile(grad_f, channels, grad_out, a.out_layout(), 0, first, valid);

    if (of.real_words > 0) {
      read_tile(grad, channels, grad_out, a.out_layout(), channels, first, valid);
      transpose_tile(grad_by_pixel, grad, channels);
      multiply<Lanes>(shares, of.keys, channels, 1, f, of.real_words, channels);
      softmax<Lanes>(shares, of.real_words);
      multiply<Lanes>(grad_shares, of.keys, channels, 1, grad, of.real_words, channels);
      softmax_backward<Lanes>(grad_shares, shares, of.real_words);
      multiply<Lanes>(result, of.keys, 1, channels, grad_shares, channels, of.real_words);
      for (int64_t i = 0; i < size; ++i) {
        grad_f[i] += result[i];
      }
      accumulate<Lanes>(sums.keys, shares, grad_by_pixel, of.real_words, channels);
      accumulate<Lanes>(sums.keys, grad_shares, f_by_pixel, of.real_words, channels);
    }

    if (a.sentence != nullptr) {
      read_tile(grad, channels, grad_out, a.out_layout(), 2 * channels, first, valid);
      scale_rows<Lanes>(gate, f, of.sentence, channels, false);
      if (a.sentence_weight != nullptr) {
        multiply<Lanes>(result, of.weight, channels, 1, gate, channels, channels);
        float* scores = result;
        result = gate;
        gate = scores;
      }
      softmax<Lanes>(gate, channels);
      accumulate_dots<Lanes>(sums.sentence, grad, gate, channels);
      scale_rows<Lanes>(grad, grad, of.sentence, channels, false);
      softmax_backward<Lanes>(grad, gate, channels);
      if (a.sentence_weight != nullptr) {
        accumulate<Lanes>(sums.gate, grad, f_by_pixel, channels, channels);
        multiply<Lanes>(result, of.weight, 1, channels, grad, channels, channels);
        scale_rows<Lanes>(grad_f, result, of.sentence, channels, true);
      } else {
        accumulate_dots<Lanes>(sums.sentence, grad, f, channels);
        scale_rows<Lanes>(grad_f, grad, of.sentence, channels, true);
      }
    }
    write_tile(grad_f, channels, grad_features, a.features_layout(), 0, first, valid);
  }
}

using Attend = void (*)(const Arguments&, int64_t, int64_t, int64_t, float*);
using AttendBackward = void (*)(const Arguments&, int64_t, int64_t, int64_t, float*, float*);

#define MIRRORGAN_ATTEND(name, scalar_t, lanes, target)                                                              \
  target void attend_##name(const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel,              \
                            float* scratch) {                                                                        \
    attend<scalar_t, lanes>(a, sample, first_pixel, end_pixel, scratch);                                             \
  }                                                                                                                  \
  target void backward_##name(const Arguments& a, int64_t sample, int64_t first_pixel, int64_t end_pixel,            \
                              float* scratch, float* sums) {                                                         \
    attend_backward<scalar_t, lanes>(a, sample, first_pixel, end_pixel, scratch, sums);                              \
  }

#define MIRRORGAN_ATTENDS(set, lanes, target) \
  MIRRORGAN_ATTEND(float_##set, float, lanes, target) \
  MIRRORGAN_ATTEND(bfloat16_##set, bfloat16_bits, lanes, target)

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_ATTENDS)

void check_dtype(const char* argument, const Tensor& tensor, ScalarType wanted) {
  MIRRORGAN_CHECK(tensor.scalar_type() == wanted, kOp, argument, tensor.scalar_type(), wanted);
}

MemoryFormat format_of(const Arguments& a) {
  return a.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// The dense inputs, and the arguments that point to them. The caller sets `out` and `grad_out`.
struct Inputs {
  Inputs(
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
    Arguments& a = arguments;
    a.samples = features.size(0);
    a.channels = features.size(1);
    a.pixels = features.size(2) * features.size(3);
    a.words_per_sample = words.size(1);
    a.out_channels = (sentence ? 3 : 2) * a.channels;
    // A map that is both contiguous and channels_last counts as contiguous, as in PyTorch.
    a.channels_last = is_dense_channels_last(features) && !features.is_contiguous();
    check_dtype("words", words, dtype);
    MIRRORGAN_CHECK_SHAPE(kOp, "words", words, {a.samples, a.words_per_sample, a.channels});
    check_dtype("mask", mask, ScalarType::Bool);
    MIRRORGAN_CHECK_SHAPE(kOp, "mask", mask, {a.samples, a.words_per_sample});
    if (sentence) {
      check_dtype("sentence", *sentence, dtype);
      MIRRORGAN_CHECK_SHAPE(kOp, "sentence", *sentence, {a.samples, a.channels});
      sentence_ = torch::stable::contiguous(*sentence);
      a.sentence = sentence_->const_data_ptr();
    }
    if (sentence_weight) {
      MIRRORGAN_CHECK(sentence.has_value(), kOp, "sentence_weight", "a weight", "None without a sentence");
      check_dtype("sentence_weight", *sentence_weight, dtype);
      MIRRORGAN_CHECK_SHAPE(kOp, "sentence_weight", *sentence_weight, {a.channels, a.channels});
      weight_ = torch::stable::contiguous(*sentence_weight);
      a.sentence_weight = weight_->const_data_ptr();
    }
    features_ = torch::stable::contiguous(features, format_of(a));
    words_ = torch::stable::contiguous(words);
    mask_ = torch::stable::contiguous(mask);
    a.features = features_->const_data_ptr();
    a.words = words_->const_data_ptr();
    a.mask = static_cast<const uint8_t*>(mask_->const_data_ptr());
  }

  Arguments arguments{};

 private:
  std::optional<Tensor> features_, words_, mask_, sentence_, weight_;
};

Tensor empty_map(const Tensor& like, const Arguments& a, int64_t channels) {
  return torch::stable::empty({a.samples, channels, like.size(2), like.size(3)}, like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt, format_of(a));
}

int64_t tasks_per_sample(const Arguments& a) {
  const int64_t task_pixels = kBlock * kBlocksPerTask;
  return (a.pixels + task_pixels - 1) / task_pixels;
}

// Calls work(task, sample, first pixel, end pixel, scratch) for all tasks.
template <typename Work>
void for_tasks(const Arguments& a, int64_t scratch_size, const Work& work) {
  const int64_t per_sample = tasks_per_sample(a);
  parallel_for(a.samples * per_sample, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<float> workspace;
    float* scratch = workspace.at_least(scratch_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % per_sample * kBlock * kBlocksPerTask;
      const int64_t last = first + kBlock * kBlocksPerTask;
      work(task, task / per_sample, first, last < a.pixels ? last : a.pixels, scratch);
    }
  });
}

Tensor glam_attention_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight) {
  Inputs inputs(features, words, mask, sentence, sentence_weight);
  Arguments& a = inputs.arguments;
  Tensor out = empty_map(features, a, a.out_channels);
  if (out.numel() == 0) {
    return out;
  }
  a.out = out.mutable_data_ptr();
  const bool is_bfloat16 = features.scalar_type() == ScalarType::BFloat16;
  const Attend attend = is_bfloat16 ? MIRRORGAN_CHOSEN(attend_bfloat16) : MIRRORGAN_CHOSEN(attend_float);
  for_tasks(a, scratch_floats(a), [&](int64_t, int64_t sample, int64_t first, int64_t end, float* scratch) {
    attend(a, sample, first, end, scratch);
  });
  return out;
}

// How many sums a sample has: one for each task, or one of zeros without any pixel.
int64_t slots_per_sample(const Arguments& a) {
  return a.pixels == 0 ? 1 : tasks_per_sample(a);
}

// Sums the tasks of each sample in order, and writes the gradients of words, sentence and sentence_weight.
template <typename scalar_t>
void write_sums(
    const Arguments& a, float* task_sums, scalar_t* grad_words, scalar_t* grad_sentence, scalar_t* grad_weight) {
  const int64_t channels = a.channels, floats = Sums::floats(a), per_sample = slots_per_sample(a);
  std::vector<double> weight_sums(grad_weight == nullptr ? 0 : static_cast<size_t>(channels * channels));
  const auto* weight = static_cast<const scalar_t*>(a.sentence_weight);
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    float* total = task_sums + sample * per_sample * floats;
    for (int64_t task = 1; task < per_sample; ++task) {
      for (int64_t i = 0; i < floats; ++i) {
        total[i] += total[task * floats + i];
      }
    }
    const Sums sums = Sums::at(a, total);
    int64_t real_words = 0;
    for (int64_t t = 0; t < a.words_per_sample; ++t, grad_words += channels) {
      const bool is_real = a.mask[sample * a.words_per_sample + t] != 0;
      for (int64_t c = 0; c < channels; ++c) {
        store(is_real ? sums.keys[real_words * channels + c] : 0.0f, grad_words + c);
      }
      real_words += is_real;
    }
    if (grad_sentence == nullptr) {
      continue;
    }
    if (grad_weight != nullptr) {
      const auto* sentence = static_cast<const scalar_t*>(a.sentence) + sample * channels;
      for (int64_t i = 0; i < channels * channels; ++i) {
        const int64_t c = i % channels;
        sums.sentence[c] += to_float(weight[i]) * sums.gate[i];
        weight_sums[i] += static_cast<double>(sums.gate[i]) * to_float(sentence[c]);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      store(sums.sentence[c], grad_sentence + sample * channels + c);
    }
  }
  for (size_t i = 0; i < weight_sums.size(); ++i) {
    store(static_cast<float>(weight_sums[i]), grad_weight + i);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> glam_attention_backward_cpu(
    const Tensor& grad_out,
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight) {
  Inputs inputs(features, words, mask, sentence, sentence_weight);
  Arguments& a = inputs.arguments;
  check_dtype("grad_out", grad_out, features.scalar_type());
  MIRRORGAN_CHECK_SHAPE(kOp, "grad_out", grad_out, {a.samples, a.out_channels, features.size(2), features.size(3)});
  const auto empty = [&](std::initializer_list<int64_t> sizes) {
    return torch::stable::empty(sizes, features.scalar_type(), std::nullopt, features.device());
  };
  const int64_t channels = a.channels;
  Tensor grad_features = empty_map(features, a, channels);
  Tensor grad_words = empty({a.samples, a.words_per_sample, channels});
  Tensor grad_sentence = sentence ? empty({a.samples, channels}) : empty({0});
  Tensor grad_weight = sentence_weight ? empty({channels, channels}) : empty({0});
  const Tensor dense_grad_out = torch::stable::contiguous(grad_out, format_of(a));
  a.grad_out = dense_grad_out.const_data_ptr();
  a.out = grad_features.mutable_data_ptr();

  const bool is_bfloat16 = features.scalar_type() == ScalarType::BFloat16;
  const AttendBackward backward =
      is_bfloat16 ? MIRRORGAN_CHOSEN(backward_bfloat16) : MIRRORGAN_CHOSEN(backward_float);
  std::vector<float> sums(static_cast<size_t>(a.samples * slots_per_sample(a) * Sums::floats(a)));
  for_tasks(a, backward_scratch_floats(a),
            [&](int64_t task, int64_t sample, int64_t first, int64_t end, float* scratch) {
              backward(a, sample, first, end, scratch, sums.data() + task * Sums::floats(a));
            });
  const auto write = [&](auto zero) {
    using scalar_t = decltype(zero);
    write_sums(a, sums.data(), static_cast<scalar_t*>(grad_words.mutable_data_ptr()),
               sentence ? static_cast<scalar_t*>(grad_sentence.mutable_data_ptr()) : nullptr,
               sentence_weight ? static_cast<scalar_t*>(grad_weight.mutable_data_ptr()) : nullptr);
  };
  if (is_bfloat16) {
    write(bfloat16_bits{});
  } else {
    write(float{});
  }
  return {grad_features, grad_words, grad_sentence, grad_weight};
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam_attention", TORCH_BOX(&mirrorgan::glam_attention_cpu));
  library.impl("glam_attention_backward", TORCH_BOX(&mirrorgan::glam_attention_backward_cpu));
}
