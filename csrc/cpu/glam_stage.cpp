// mirrorgan::glam_stage on the CPU; what it computes is said in mirrorgan_fast/ops/glam_stage.py.
//
// Depth first: a few rows go through all layers while they are in the second-level cache, then the next few. Between its
// layers a stage of 128 px would write and read 25 MB an image, which takes as long as all of its products. Each layer
// writes into the window that the next one reads, with the zeros around it already there.
//
// Only with AMX tiles, and only for maps that need no filling up; on others the ops run one by one.

#include "glam_stage.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>

#include "../checks.h"
#include "glam_attention_mix_inputs.h"
#include "image_head.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "workspace.h"

#if defined(MIRRORGAN_X86)

namespace mirrorgan {

using torch::stable::Tensor;

namespace glam {
namespace {

using convolution::Arguments;
using convolution::Epilogue;
using convolution::Group;
using convolution::kGroup;
using convolution::kPixels;

constexpr int64_t kRowsAtOnce = 8;

// Rows of a map, with a column of zeros at either side or without. What nobody reads any more makes place for what comes.
class RowWindow {
 public:
  RowWindow(bfloat16_bits* storage, int64_t width, int64_t border, int64_t channels, int64_t capacity)
      : storage_(storage), width_(width), border_(border), channels_(channels), capacity_(capacity) {}

  static int64_t size(int64_t width, int64_t border, int64_t channels, int64_t capacity) {
    return (capacity * (width + 2 * border) + border) * channels;
  }

  // Begin with `row` as the first one that is held.
  void begin(int64_t row) {
    first_ = row;
    write_zeros(row);
    // The column to the right of a row is beside the one to the left of the next.
    for (int64_t index = 1; index <= capacity_ && border_ > 0; ++index) {
      std::fill_n(storage_ + index * pitch() - channels_, 2 * channels_, bfloat16_bits{0});
    }
  }

  // Make place for rows up to `end`; rows before `needed` may go.
  void reserve(int64_t needed, int64_t end) {
    if (end - first_ <= capacity_) {
      return;
    }
    std::memmove(storage_, row(needed), static_cast<size_t>((held_ - needed) * pitch()) * sizeof(bfloat16_bits));
    first_ = needed;
  }

  void written(int64_t end) {
    held_ = end;
  }

  void write_zeros(int64_t index) {
    std::fill_n(row(index), pitch(), bfloat16_bits{0});
  }

  bfloat16_bits* row(int64_t index) const {
    return storage_ + (index - first_) * pitch();
  }

  // Where row `index` would be of a map that lies as this window does, from its first pixel.
  bfloat16_bits* map(int64_t index) const {
    return row(index) + border_ * channels_;
  }

  int64_t pitch() const {
    return (width_ + 2 * border_) * channels_;
  }

  convolution::Window<bfloat16_bits> window() const {
    return {{storage_, storage_ + channels_, storage_ + 2 * channels_}, width_ + 2 * border_, 1, channels_};
  }

  int64_t first() const {
    return first_;
  }

 private:
  bfloat16_bits* storage_;
  int64_t width_, border_, channels_, capacity_;
  int64_t first_ = 0, held_ = 0;
};

struct Range {
  int64_t begin, end;

  Range around(int64_t height) const {
    return {std::max<int64_t>(0, begin - 1), std::min(height, end + 1)};
  }
};

int64_t blocks_of(const Stage& stage) {
  return static_cast<int64_t>(stage.layers.size()) / 2;
}

// How many rows the residual window holds: those at once, and what the last layer is behind.
int64_t residual_capacity(const Stage& stage) {
  return 2 * kRowsAtOnce + 2 * static_cast<int64_t>(stage.layers.size()) + 2;
}

constexpr int64_t kHiddenCapacity = 2 * kRowsAtOnce + 4;
constexpr int64_t kFeaturesCapacity = 2 * kRowsAtOnce + 6;

int64_t windows_size(const Stage& stage) {
  int64_t size = RowWindow::size(stage.width, 1, stage.attention.out_channels, residual_capacity(stage));
  for (int64_t block = 0; block < blocks_of(stage); ++block) {
    size += RowWindow::size(stage.width, 1, stage.layers[2 * block].out_channels, kHiddenCapacity);
  }
  return size + RowWindow::size(2 * stage.width, 0, stage.layers.back().out_channels, kFeaturesCapacity);
}

void convolve_rows(const Arguments& layer, Epilogue epilogue, const RowWindow& input, int64_t begin, int64_t end) {
  static thread_local std::vector<Group> groups;
  const convolution::Window<bfloat16_bits> window = input.window();
  groups.clear();
  // Pairs of groups, downwards: two of three rows of what the next one reads are in the first-level cache then.
  const int64_t pair = layer.width % kPixels == 0 ? kPixels : kGroup;
  for (int64_t first = 0; first < layer.width; first += pair) {
    for (int64_t row = begin; row < end; ++row) {
      // A tap of dy = -1 begins in the row above, which is where offsets count from.
      const int64_t start = (row - 1 - input.first()) * window.pitch;
      for (int64_t column = first; column < first + pair; column += kGroup) {
        groups.push_back({0, row, column, kGroup, start + column});
      }
    }
  }
  convolution::convolve_strip_amx(layer, epilogue, window, groups, 0, layer.blocks);
}

// Rows [2 * rows.begin, 2 * rows.end) of a sample's result.
void run_rows(const Stage& stage, const attention_mix::Panels& panels, int64_t sample, Range rows) {
  static thread_local Workspace<bfloat16_bits> workspace;
  const int64_t height = stage.height, width = stage.width, blocks = blocks_of(stage);
  bfloat16_bits* storage = workspace.at_least(windows_size(stage));

  // The rows that each layer has to make, from the last to the first.
  const int64_t last = 2 * blocks;
  std::vector<Range> ranges(static_cast<size_t>(last) + 2);  // of the layers; then of the attention
  ranges[last] = stage.head ? rows.around(height) : rows;
  for (int64_t layer = last - 1; layer >= 0; --layer) {
    ranges[layer] = ranges[layer + 1].around(height);
  }
  const Range of_attention = ranges[0].around(height);

  std::vector<RowWindow> windows;  // the residual one, then each block's hidden one
  for (int64_t i = 0; i <= blocks; ++i) {
    const int64_t channels = i == 0 ? stage.attention.out_channels : stage.layers[2 * i - 2].out_channels;
    const int64_t capacity = i == 0 ? residual_capacity(stage) : kHiddenCapacity;
    windows.emplace_back(storage, width, 1, channels, capacity);
    storage += RowWindow::size(width, 1, channels, capacity);
    windows.back().begin((i == 0 ? of_attention.begin : ranges[2 * i - 2].begin) - 1);
  }
  RowWindow& residual = windows[0];
  RowWindow features_made(storage, 2 * width, 0, stage.layers.back().out_channels, kFeaturesCapacity);
  features_made.begin(2 * ranges[last].begin);

  const int64_t pixels = height * width;
  const auto* features =
      static_cast<const bfloat16_bits*>(stage.attention.features) + sample * pixels * stage.attention.channels;
  std::vector<Arguments> layers = stage.layers;
  std::vector<int64_t> done;
  for (int64_t layer = 0; layer <= last; ++layer) {
    done.push_back(ranges[layer].begin);
  }
  int64_t attended = of_attention.begin;
  int64_t imaged = 2 * rows.begin;
  while (done[last] < ranges[last].end) {
    if (attended < of_attention.end) {
      const int64_t end = std::min(attended + kRowsAtOnce, of_attention.end);
      residual.reserve(done[last] - 1, end + 1);
      attention_mix::attend_amx(stage.attention, panels, features + attended * width * stage.attention.channels,
                                residual.map(attended), end - attended, width, residual.pitch());
      attended = end;
      residual.written(end);
      if (end == height) {
        residual.write_zeros(height);
        residual.written(end + 1);
      }
    }
    for (int64_t index = 0; index <= last; ++index) {
      const int64_t input_done = index == 0 ? attended : done[index - 1];
      const int64_t input_end = index == 0 ? of_attention.end : ranges[index - 1].end;
      const int64_t begin = done[index], possible = input_done == input_end ? ranges[index].end : input_done - 1;
      const int64_t end = std::min({possible, ranges[index].end, begin + kRowsAtOnce});
      if (end <= begin) {
        continue;
      }
      Arguments& layer = layers[index];
      if (index == last) {
        if (!stage.head) {
          layer.out = stage.out + sample * 4 * pixels * layer.out_channels;
          convolve_rows(layer, Epilogue::glu, residual, begin, end);
        } else {
          features_made.reserve(std::max(imaged - 1, features_made.first()), 2 * end);
          layer.out = features_made.map(0);
          convolve_rows(layer, Epilogue::glu, residual, begin, end);
          features_made.written(2 * end);
          const int64_t imaged_end = end == ranges[last].end ? 2 * rows.end : 2 * end - 1;
          image_head::write_rows_amx(*stage.head, stage.head_panel, features_made.map(0),
                                     static_cast<uint8_t*>(stage.head->out) + sample * 4 * pixels * stage.head->out_channels,
                                     imaged, imaged_end);
          imaged = imaged_end;
        }
      } else if (index % 2 == 0) {
        RowWindow& hidden = windows[index / 2 + 1];
        hidden.reserve(done[index + 1] - 1, end + 1);
        layer.out = hidden.map(0);
        convolve_rows(layer, Epilogue::glu, residual, begin, end);
        hidden.written(end);
        if (end == height) {
          hidden.write_zeros(height);
          hidden.written(end + 1);
        }
      } else {
        // In place: no layer that still reads the rows as they were is behind.
        layer.out = residual.map(0);
        layer.residual = layer.out;
        convolve_rows(layer, Epilogue::add, windows[index / 2 + 1], begin, end);
      }
      done[index] = end;
    }
  }
}

}  // namespace

void add_layers(
    const char* op,
    const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases,
    size_t first,
    size_t count,
    Stage& stage) {
  MIRRORGAN_CHECK(count % 2 == 1 && weights.size() >= first + count && biases.size() == weights.size(), op, "weights",
                  weights.size(), "two of each block and one, and as many biases");
  MIRRORGAN_CHECK(stage.width % kGroup == 0, op, "features", stage.width, "a width of whole 16 pixels");
  MIRRORGAN_CHECK(stage.attention.out_channels % convolution::kDepth == 0, op, "mix", stage.attention.out_channels,
                  "whole 32 channels");
  for (size_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const Tensor& weight = weights[first + i];
    Arguments layer = convolution::layer_of(
        op, weight, biases[first + i], last || i % 2 == 0 ? Epilogue::glu : Epilogue::add,
        torch::headeronly::ScalarType::BFloat16,
        i == 0 ? stage.attention.out_channels : stage.layers.back().out_channels);
    MIRRORGAN_CHECK(layer.products == 0 && layer.taps == (last ? 4 : 9), op, "weights", shape_text(weight.sizes()),
                    "3x3, the last upsampled");
    MIRRORGAN_CHECK(last || layer.out_channels == stage.attention.out_channels, op, "weights",
                    shape_text(weight.sizes()), "blocks of as many channels as the mix gives");
    layer.height = stage.height;
    layer.width = stage.width;
    layer.samples = 1;
    layer.out_pitch = last ? 2 * stage.width : stage.width + 2;
    stage.layers.push_back(layer);
  }
}

void add_head(const char* op, const Tensor& weight, const Tensor& bias, uint8_t* out, Stage& stage) {
  stage.head = convolution::layer_of(op, weight, bias, Epilogue::image, torch::headeronly::ScalarType::BFloat16,
                                     stage.layers.back().out_channels);
  stage.head->height = 2 * stage.height;
  stage.head->width = 2 * stage.width;
  MIRRORGAN_CHECK(image_head::takes_amx(*stage.head), op, "head_weight", shape_text(weight.sizes()),
                  "3x3, of whole 32 channels to at most 4");
  stage.head->out = out;
  stage.head_panel = image_head::prepare_amx(*stage.head);
}

void run_stage(const Stage& stage, int64_t threads) {
  const attention_mix::Panels* panels = attention_mix::prepare_panels(stage.attention);
  // As many parts of a sample as it takes to give every thread as much.
  const int64_t samples = stage.attention.samples;
  int64_t parts = 1;
  while (samples * parts % threads != 0 && samples * parts < 8 * threads) {
    ++parts;
  }
  parts = std::min(parts, stage.height);
  parallel_for(samples * parts, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      const Range rows{stage.height * part / parts, stage.height * (part + 1) / parts};
      run_rows(stage, panels[task / parts], task / parts, rows);
    }
  });
}

}  // namespace glam

namespace {

void glam_stage_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases,
    const std::optional<Tensor>& head_weight,
    const std::optional<Tensor>& head_bias,
    Tensor out) {
  using torch::headeronly::ScalarType;
  constexpr const char* kOp = "glam_stage";
  MIRRORGAN_CHECK(chosen_instruction_set() == InstructionSet::amx, kOp, "the processor",
                  name_of(chosen_instruction_set()), "amx");
  MIRRORGAN_CHECK(features.scalar_type() == ScalarType::BFloat16, kOp, "features", features.scalar_type(), "BFloat16");
  attention_mix::Inputs inputs(kOp, features, words, mask, sentence, sentence_weight, mix);
  glam::Stage stage{};
  stage.attention = inputs.arguments;
  stage.height = features.size(2);
  stage.width = features.size(3);
  glam::add_layers(kOp, weights, biases, 0, weights.size(), stage);
  const int64_t samples = stage.attention.samples;
  MIRRORGAN_CHECK(head_weight.has_value() == head_bias.has_value(), kOp, "head_bias", "only one of weight and bias",
                  "both or none");
  if (head_weight) {
    check_contiguous(kOp, "out", out, ScalarType::Byte, {samples, 2 * stage.height, 2 * stage.width, head_bias->numel()});
    glam::add_head(kOp, *head_weight, *head_bias, static_cast<uint8_t*>(out.mutable_data_ptr()), stage);
  } else {
    check_map(kOp, "out", out, ScalarType::BFloat16,
              {samples, stage.layers.back().out_channels, 2 * stage.height, 2 * stage.width});
    stage.out = static_cast<bfloat16_bits*>(out.mutable_data_ptr());
  }
  if (out.numel() > 0) {
    glam::run_stage(stage, torch::stable::get_num_threads());
  }
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam_stage", TORCH_BOX(&mirrorgan::glam_stage_cpu));
}

#endif
