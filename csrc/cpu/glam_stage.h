// A later stage of the generator on the CPU, depth first. mirrorgan::glam_stage and mirrorgan::glam share it.

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
  std::vector<convolution::Arguments> layers;  // for each block one with GLU and one with residual; then the up-block
  int64_t height, width;
  bfloat16_bits* out;  // the features of the result, or null if a head makes images
  std::optional<convolution::Arguments> head;
  const bfloat16_bits* head_panel;
};

// Adds layers to a stage whose attention is set: `count` packed weights and biases, from `first` on.
void add_layers(
    const char* op,
    const std::vector<torch::stable::Tensor>& weights,
    const std::vector<torch::stable::Tensor>& biases,
    size_t first,
    size_t count,
    Stage& stage);
// Adds the image head.
void add_head(
    const char* op, const torch::stable::Tensor& weight, const torch::stable::Tensor& bias, uint8_t* out, Stage& stage);
// Runs a stage for all samples, divided evenly among this many threads.
void run_stage(const Stage& stage, int64_t threads);

#endif

}  // namespace mirrorgan::glam
