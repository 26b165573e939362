// Checks the tensors of mirrorgan::glam_attention_mix and glam_stage, and turns them into arguments of the kernels.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../checks.h"
#include "glam_attention_mix.h"

namespace mirrorgan::attention_mix {

// The dense inputs, and the arguments that point to them. The caller sets `out`.
class Inputs {
 public:
  using Tensor = torch::stable::Tensor;
  using ScalarType = torch::headeronly::ScalarType;

  Inputs(
      const char* op,
      const Tensor& features,
      const Tensor& words,
      const Tensor& mask,
      const std::optional<Tensor>& sentence,
      const std::optional<Tensor>& sentence_weight,
      const Tensor& mix)
      : op_(op), dtype_(features.scalar_type()) {
    MIRRORGAN_CHECK(dtype_ == ScalarType::Float || dtype_ == ScalarType::BFloat16, op, "features", dtype_,
                    "Float or BFloat16, which the compiled CPU kernel takes");
    MIRRORGAN_CHECK(features.dim() == 4, op, "features", shape_text(features.sizes()), "(N, C, H, W)");
    MIRRORGAN_CHECK(words.dim() == 3, op, "words", shape_text(words.sizes()), "(N, T, C)");
    MIRRORGAN_CHECK(mix.dim() == 2, op, "mix", shape_text(mix.sizes()), "(O, 3C), or (O, 2C) without a sentence");
    MIRRORGAN_CHECK(!sentence_weight || sentence, op, "sentence_weight", "a weight", "None without a sentence");
    Arguments& a = arguments;
    a.samples = features.size(0);
    a.channels = features.size(1);
    a.pixels = features.size(2) * features.size(3);
    a.words_per_sample = words.size(1);
    a.out_channels = mix.size(0);
    MIRRORGAN_CHECK(a.channels > 0, op, "features", shape_text(features.sizes()), "at least one channel");
    features_ = torch::stable::contiguous(features, torch::headeronly::MemoryFormat::ChannelsLast);
    words_ = dense("words", words, dtype_, {a.samples, a.words_per_sample, a.channels});
    mask_ = dense("mask", mask, ScalarType::Bool, {a.samples, a.words_per_sample});
    mix_ = dense("mix", mix, dtype_, {a.out_channels, a.channels * (sentence ? 3 : 2)});
    if (sentence) {
      sentence_ = dense("sentence", *sentence, dtype_, {a.samples, a.channels});
      a.sentence = sentence_->const_data_ptr();
    }
    if (sentence_weight) {
      weight_ = dense("sentence_weight", *sentence_weight, dtype_, {a.channels, a.channels});
      a.sentence_weight = weight_->const_data_ptr();
    }
    a.features = features_->const_data_ptr();
    a.words = words_->const_data_ptr();
    a.mask = static_cast<const uint8_t*>(mask_->const_data_ptr());
    a.mix = mix_->const_data_ptr();
  }

  Arguments arguments{};

 private:
  Tensor dense(const char* argument, const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> sizes) const {
    MIRRORGAN_CHECK(tensor.scalar_type() == dtype, op_, argument, tensor.scalar_type(), dtype);
    MIRRORGAN_CHECK_SHAPE(op_, argument, tensor, sizes);
    return torch::stable::contiguous(tensor);
  }

  const char* op_;
  ScalarType dtype_;
  std::optional<Tensor> features_, words_, mask_, mix_, sentence_, weight_;
};

}  // namespace mirrorgan::attention_mix
