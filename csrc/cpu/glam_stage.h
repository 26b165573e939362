// A later stage of the generator on the CPU, depth first: what mirrorgan::glam_stage and mirrorgan::glam share.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "convolution_arguments.h"
#include "glam_attention_mix.h"

namespace mirrorgan::glam {

#if defined(MIRRORGAN_X86)

struct Stage {
  attention_mix::Arguments attention;
  std::vector<convolution::Arguments> layers;  // of each block: with GLU, with residual; the last is the up-convolution
  int64_t height, width;
  bfloat16_bits* out;  // features, or null where the head makes images of them
  std::optional<convolution::Arguments> head;
  const bfloat16_bits* head_panel;
};

// The layers of a stage whose attention is known: `count` packed weights from `first` on, and biases.
void add_layers(
    const char* op,
    const std::vector<torch::stable::Tensor>& weights,
    const std::vector<torch::stable::Tensor>& biases,
    size_t first,
    size_t count,
    Stage& stage);
// Its head, which makes images of what the layers give.
void add_head(
    const char* op, const torch::stable::Tensor& weight, const torch::stable::Tensor& bias, uint8_t* out, Stage& stage);
// All samples of a stage, cut so that this many threads have as much to do.
void run_stage(const Stage& stage, int64_t threads);

#endif

}  // namespace mirrorgan::glam
