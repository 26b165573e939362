// mirrorgan::glam_stage on the CPU. What it computes is defined in mirrorgan_fast/ops/glam_stage.py.
//
// The stage runs depth first: a few rows go through all layers while they are in the second-level cache, then the next few.
// Layer by layer, a stage of 128 px would write and read 25 MB per image, which takes as long as all of its products. Each
// layer writes into the window that the next layer reads and that already has the zeros around the map.
//
// This is for AMX only, and for sizes without padding. In other cases the ops run one by one.

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

constexpr int64_t kRowsPerStep = 8;

// Some consecutive rows of a map, with or without a column of zeros on each side. Rows that are no longer read make
// room for new ones.
class RowWindow {
 public:
  RowWindow(bfloat16_bits* storage, int64_t width, int64_t border, int64_t channels, int64_t capacity)
      : storage_(storage), width_(width), border_(border), channels_(channels), capacity_(capacity) {}

  static int64_t size(int64_t width, int64_t border, int64_t channels, int64_t capacity) {
    return (capacity * (width + 2 * border) + border) * channels;
  }

  // Starts with `row` as the first row in the window.
  void begin(int64_t row) {
    first_ = row;
    write_zeros(row);
    // In memory, the column to the right of a row is next to the column to the left of the next row.
    for (int64_t index = 1; index <= capacity_ && border_ > 0; ++index) {
      std::fill_n(storage_ + index * pitch() - channels_, 2 * channels_, bfloat16_bits{0});
    }
  }

  // Makes room for rows up to `end`. Rows before `needed` are dropped.
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

  // Where the first pixel of row `index` is.
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

// Rows in the residual window: those of a step, and those by which the last layer is behind.
int64_t residual_capacity(const Stage& stage) {
  return 2 * kRowsPerStep + 2 * static_cast<int64_t>(stage.layers.size()) + 2;
}

constexpr int64_t kHiddenCapacity = 2 * kRowsPerStep + 4;
constexpr int64_t kFeaturesCapacity = 2 * kRowsPerStep + 6;

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
  // Pairs of groups go from top to bottom: then two of the three rows that a pair reads are already in the first-level
  // cache.
  const int64_t pair = layer.width % kPixels == 0 ? kPixels : kGroup;
  for (int64_t first = 0; first < layer.width; first += pair) {
    for (int64_t row = begin; row < end; ++row) {
      // Offsets count from the row above, which the taps with dy = -1 read.
      const int64_t start = (row - 1 - input.first()) * window.pitch;
      for (int64_t column = first; column < first + pair; column += kGroup) {
        groups.push_back({0, row, column, kGroup, start + column});
      }
    }
  }
  convolution::convolve_strip_amx(layer, epilogue, window, groups, 0, layer.blocks);
}

// Computes the rows [2 * rows.begin, 2 * rows.end) of a sample's result.
void run_rows(const Stage& stage, const attention_mix::Panels& panels, int64_t sample, Range rows) {
  static thread_local Workspace<bfloat16_bits> workspace;
  const int64_t height = stage.height, width = stage.width, blocks = blocks_of(stage);
  bfloat16_bits* storage = workspace.at_least(windows_size(stage));

  // The rows that each layer must compute, from the last layer to the first.
  const int64_t last = 2 * blocks;
  std::vector<Range> ranges(static_cast<size_t>(last) + 2);
  ranges[last] = stage.head ? rows.around(height) : rows;
  for (int64_t layer = last - 1; layer >= 0; --layer) {
    ranges[layer] = ranges[layer + 1].around(height);
  }
  const Range attention_range = ranges[0].around(height);

  std::vector<RowWindow> windows;  // the residual window, then the hidden window of each block
  for (int64_t i = 0; i <= blocks; ++i) {
    const int64_t channels = i == 0 ? stage.attention.out_channels : stage.layers[2 * i - 2].out_channels;
    const int64_t capacity = i == 0 ? residual_capacity(stage) : kHiddenCapacity;
    windows.emplace_back(storage, width, 1, channels, capacity);
    storage += RowWindow::size(width, 1, channels, capacity);
    windows.back().begin((i == 0 ? attention_range.begin : ranges[2 * i - 2].begin) - 1);
  }
  RowWindow& residual = windows[0];
  RowWindow last_features(storage, 2 * width, 0, stage.layers.back().out_channels, kFeaturesCapacity);
  last_features.begin(2 * ranges[last].begin);

  const int64_t pixels = height * width;
  const auto* features =
      static_cast<const bfloat16_bits*>(stage.attention.features) + sample * pixels * stage.attention.channels;
  std::vector<Arguments> layers = stage.layers;
  std::vector<int64_t> done;
  for (int64_t layer = 0; layer <= last; ++layer) {
    done.push_back(ranges[layer].begin);
  }
  int64_t attention_done = attention_range.begin;
  int64_t image_rows_done = 2 * rows.begin;
  while (done[last] < ranges[last].end) {
    if (attention_done < attention_range.end) {
      const int64_t end = std::min(attention_done + kRowsPerStep, attention_range.end);
      residual.reserve(done[last] - 1, end + 1);
      attention_mix::attend_amx(stage.attention, panels, features + attention_done * width * stage.attention.channels,
                                residual.map(attention_done), end - attention_done, width, residual.pitch());
      attention_done = end;
      residual.written(end);
      if (end == height) {
        residual.write_zeros(height);
        residual.written(end + 1);
      }
    }
    for (int64_t index = 0; index <= last; ++index) {
      const int64_t input_done = index == 0 ? attention_done : done[index - 1];
      const int64_t input_end = index == 0 ? attention_range.end : ranges[index - 1].end;
      const int64_t begin = done[index], possible = input_done == input_end ? ranges[index].end : input_done - 1;
      const int64_t end = std::min({possible, ranges[index].end, begin + kRowsPerStep});
      if (end <= begin) {
        continue;
      }
      Arguments& layer = layers[index];
      if (index == last) {
        if (!stage.head) {
          layer.out = stage.out + sample * 4 * pixels * layer.out_channels;
          convolve_rows(layer, Epilogue::glu, residual, begin, end);
        } else {
          last_features.reserve(std::max(image_rows_done - 1, last_features.first()), 2 * end);
          layer.out = last_features.map(0);
          convolve_rows(layer, Epilogue::glu, residual, begin, end);
          last_features.written(2 * end);
          const int64_t image_rows_end = end == ranges[last].end ? 2 * rows.end : 2 * end - 1;
          image_head::write_rows_amx(*stage.head, stage.head_panel, last_features.map(0),
                                     static_cast<uint8_t*>(stage.head->out) + sample * 4 * pixels * stage.head->out_channels,
                                     image_rows_done, image_rows_end);
          image_rows_done = image_rows_end;
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
        // In place: all layers that read the previous values of these rows are done with them.
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
                  weights.size(), "two for each block and one for the up-block, and as many biases");
  MIRRORGAN_CHECK(stage.width % kGroup == 0, op, "features", stage.width, "a width that is a multiple of 16");
  MIRRORGAN_CHECK(stage.attention.out_channels % convolution::kDepth == 0, op, "mix", stage.attention.out_channels,
                  "a multiple of 32 channels");
  for (size_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const Tensor& weight = weights[first + i];
    Arguments layer = convolution::layer_of(
        op, weight, biases[first + i], last || i % 2 == 0 ? Epilogue::glu : Epilogue::add,
        torch::headeronly::ScalarType::BFloat16,
        i == 0 ? stage.attention.out_channels : stage.layers.back().out_channels);
    MIRRORGAN_CHECK(layer.products == 0 && layer.taps == (last ? 4 : 9), op, "weights", shape_text(weight.sizes()),
                    "3x3 convolutions, of which the last upsamples");
    MIRRORGAN_CHECK(last || layer.out_channels == stage.attention.out_channels, op, "weights",
                    shape_text(weight.sizes()), "blocks with as many channels as the mix gives");
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
                  "a 3x3 convolution from a multiple of 32 channels to at most 4");
  stage.head->out = out;
  stage.head_panel = image_head::prepare_amx(*stage.head);
}

void run_stage(const Stage& stage, int64_t threads) {
  const attention_mix::Panels* panels = attention_mix::prepare_panels(stage.attention);
  // The number of parts of a sample with which every thread has the same amount of work.
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
  MIRRORGAN_CHECK(head_weight.has_value() == head_bias.has_value(), kOp, "head_bias",
                  "only one of head_weight and head_bias", "both or none");
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
