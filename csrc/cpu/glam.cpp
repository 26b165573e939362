// mirrorgan::glam on the CPU. What it computes is defined in mirrorgan_fast/ops/glam.py.
//
// It runs the layers of conv_glu.cpp and conv_add.cpp and the stages of glam_stage.cpp one after the other. This is for AMX
// only.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../checks.h"
#include "convolution.h"
#include "convolution_arguments.h"
#include "glam_stage.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "workspace.h"

#if defined(MIRRORGAN_X86)

namespace mirrorgan {
namespace {

using torch::stable::Tensor;
using convolution::Arguments;
using convolution::Epilogue;
using torch::headeronly::ScalarType;

constexpr const char* kOp = "glam";
constexpr int64_t kFirstSide = 4;  // height and width of the map that F_0's linear layer makes

const void* checked(const char* argument, const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  check_contiguous(kOp, argument, tensor, dtype, sizes);
  return tensor.const_data_ptr();
}

const float* floats(const char* argument, const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  return static_cast<const float*>(checked(argument, tensor, ScalarType::Float, sizes));
}

struct Inputs {
  int64_t samples, noise_size, condition_size, words_per_sample, word_size;
  const float *noise, *condition_noise, *words, *sentence;
  const uint8_t* mask;

  Inputs(const Tensor& noise, const Tensor& condition_noise, const Tensor& words, const Tensor& mask, const Tensor& sentence) {
    MIRRORGAN_CHECK(noise.dim() == 2, kOp, "noise", shape_text(noise.sizes()), "(N, Z)");
    MIRRORGAN_CHECK(condition_noise.dim() == 2, kOp, "condition_noise", shape_text(condition_noise.sizes()), "(N, K)");
    MIRRORGAN_CHECK(words.dim() == 3, kOp, "words", shape_text(words.sizes()), "(N, T, D)");
    samples = noise.size(0);
    noise_size = noise.size(1);
    condition_size = condition_noise.size(1);
    words_per_sample = words.size(1);
    word_size = words.size(2);
    this->noise = floats("noise", noise, {samples, noise_size});
    this->condition_noise = floats("condition_noise", condition_noise, {samples, condition_size});
    this->words = floats("words", words, {samples, words_per_sample, word_size});
    this->mask = static_cast<const uint8_t*>(checked("mask", mask, ScalarType::Bool, {samples, words_per_sample}));
    this->sentence = floats("sentence", sentence, {samples, word_size});
  }
};

// The generator's tensors. Its layers are taken in the order in which they run.
struct Layers {
  const std::vector<Tensor>&weights, &biases, &mixes, &sentence_weights;
  int64_t upsamples;
  size_t next = 0;

  // Takes the next layer, with this many input channels and, if given, this many output channels.
  Arguments take(Epilogue epilogue, int64_t channels, std::optional<int64_t> wanted_channels = {}) {
    MIRRORGAN_CHECK(next < weights.size() && biases.size() == weights.size(), kOp, "weights", weights.size(),
                    "more layers, and as many biases");
    const Arguments layer =
        convolution::layer_of(kOp, weights[next], biases[next], epilogue, ScalarType::BFloat16, channels);
    MIRRORGAN_CHECK(!wanted_channels || layer.out_channels == *wanted_channels, kOp, "biases",
                    shape_text(biases[next].sizes()), *wanted_channels);
    ++next;
    return layer;
  }

  // How many layers each later stage has: those that project the text, those of the blocks, and the up-block.
  size_t layers_per_stage() const {
    const size_t other_layers = 3 + static_cast<size_t>(upsamples);  // s_ca, F_0's linear layer, and the head
    const size_t stage_layers = weights.size() - std::min(weights.size(), other_layers);
    MIRRORGAN_CHECK(!mixes.empty() && stage_layers >= 2 * mixes.size() && stage_layers % mixes.size() == 0, kOp, "weights",
                    weights.size(), "the same number of layers in each stage");
    return stage_layers / mixes.size();
  }
};

// Memory for the values between the layers.
struct Memory {
  Workspace<bfloat16_bits> rows, condition, first, upsampled[2], words, keys, sentences, features[2];
};

void round(const float* values, int64_t count, bfloat16_bits* out) {
  for (int64_t i = 0; i < count; ++i) {
    store(values[i], out + i);
  }
}

// Runs a linear layer on the rows of a matrix: as a 1x1 convolution of a map that is one pixel wide.
void run_linear(Arguments layer, Epilogue epilogue, const bfloat16_bits* x, int64_t rows, bfloat16_bits* out) {
  MIRRORGAN_CHECK(layer.taps == 1, kOp, "weights", layer.taps, "one tap, for a linear layer");
  layer.x = x;
  layer.out = out;
  layer.samples = layer.width = layer.out_pitch = 1;
  layer.height = rows;
  convolution::convolve(layer, epilogue, ScalarType::BFloat16);
}

// s_ca = mu + exp(log_var / 2) eps
const bfloat16_bits* augment(const Inputs& in, Layers& layers, Memory& memory) {
  const int64_t size = in.condition_size;
  const Arguments layer = layers.take(Epilogue::glu, in.word_size, 2 * size);
  bfloat16_bits* rows = memory.rows.at_least(in.samples * in.word_size);
  round(in.sentence, in.samples * in.word_size, rows);
  bfloat16_bits* both = memory.condition.at_least(in.samples * 3 * size);
  run_linear(layer, Epilogue::glu, rows, in.samples, both);
  bfloat16_bits* s_ca = both + in.samples * 2 * size;
  for (int64_t n = 0; n < in.samples; ++n) {
    const bfloat16_bits *mu = both + 2 * n * size, *log_var = mu + size;
    for (int64_t i = 0; i < size; ++i) {
      const float deviation = std::exp(0.5f * to_float(log_var[i]));
      store(to_float(mu[i]) + deviation * in.condition_noise[n * size + i], s_ca + n * size + i);
    }
  }
  return s_ca;
}

struct Map {
  const bfloat16_bits* f;
  int64_t side, channels;
};

// f_0 = F_0(z, s_ca)
Map run_first(const Inputs& in, Layers& layers, const bfloat16_bits* s_ca, Memory& memory) {
  const int64_t size = in.condition_size + in.noise_size;
  bfloat16_bits* rows = memory.rows.at_least(in.samples * size);
  for (int64_t n = 0; n < in.samples; ++n) {
    std::copy_n(s_ca + n * in.condition_size, in.condition_size, rows + n * size);
    round(in.noise + n * in.noise_size, in.noise_size, rows + n * size + in.condition_size);
  }
  const Arguments linear = layers.take(Epilogue::glu, size);
  int64_t side = kFirstSide, channels = linear.out_channels / (side * side);
  MIRRORGAN_CHECK(channels > 0 && channels * side * side == linear.out_channels, kOp, "biases", linear.out_channels,
                  "a multiple of 16, for the pixels of a 4x4 map");
  bfloat16_bits* f = memory.first.at_least(in.samples * linear.out_channels);
  run_linear(linear, Epilogue::glu, rows, in.samples, f);
  for (int64_t i = 0; i < layers.upsamples; ++i) {
    Arguments up = layers.take(Epilogue::glu, channels);
    MIRRORGAN_CHECK(up.phases == 4, kOp, "weights", up.phases, "the four phases of an up-block");
    up.x = f;
    up.samples = in.samples;
    up.height = up.width = side;
    side *= 2;
    up.out_pitch = side;
    channels = up.out_channels;
    f = memory.upsampled[i % 2].at_least(in.samples * side * side * channels);
    up.out = f;
    convolution::convolve(up, Epilogue::glu, ScalarType::BFloat16);
  }
  return {f, side, channels};
}

// Takes the layers of the later stages, and computes U w and V s_ca of all samples.
std::vector<glam::Stage> take_stages(
    const Inputs& in, Layers& layers, const Map& first, const bfloat16_bits* s_ca, Memory& memory) {
  const auto stage_count = static_cast<int64_t>(layers.mixes.size());
  const size_t layer_count = layers.layers_per_stage();
  const int64_t word_count = in.samples * in.words_per_sample, channels = first.channels;
  bfloat16_bits* words = memory.words.at_least(word_count * in.word_size);
  round(in.words, word_count * in.word_size, words);
  bfloat16_bits* keys = memory.keys.at_least(stage_count * word_count * channels);
  bfloat16_bits* sentences = memory.sentences.at_least(stage_count * in.samples * channels);
  std::vector<glam::Stage> stages;
  for (int64_t i = 0; i < stage_count; ++i, keys += word_count * channels, sentences += in.samples * channels) {
    const Tensor& mix = layers.mixes[i];
    MIRRORGAN_CHECK(mix.dim() == 2, kOp, "mixes", shape_text(mix.sizes()), "(C', 2C) or (C', 3C)");
    const int64_t parts = mix.size(1) == 3 * channels ? 3 : 2;
    glam::Stage stage{};
    stage.height = stage.width = first.side << i;
    attention_mix::Arguments& attention = stage.attention;
    attention.channels = channels;
    attention.words_per_sample = in.words_per_sample;
    attention.pixels = stage.height * stage.width;
    attention.out_channels = mix.size(0);
    attention.mix = checked("mixes", mix, ScalarType::BFloat16, {mix.size(0), parts * channels});
    run_linear(layers.take(Epilogue::add, in.word_size, channels), Epilogue::add, words, word_count, keys);
    attention.words = keys;
    if (parts == 3) {
      run_linear(layers.take(Epilogue::add, in.condition_size, channels), Epilogue::add, s_ca, in.samples, sentences);
      attention.sentence = sentences;
    }
    if (!layers.sentence_weights.empty()) {
      MIRRORGAN_CHECK(parts == 3 && layers.sentence_weights.size() == layers.mixes.size(), kOp, "sentence_weights",
                      layers.sentence_weights.size(), "one for each stage with a sentence, or none");
      attention.sentence_weight =
          checked("sentence_weights", layers.sentence_weights[i], ScalarType::BFloat16, {channels, channels});
    }
    const size_t count = layer_count - static_cast<size_t>(parts - 1);
    glam::add_layers(kOp, layers.weights, layers.biases, layers.next, count, stage);
    layers.next += count;
    MIRRORGAN_CHECK(stage.layers.back().out_channels == channels, kOp, "biases", stage.layers.back().out_channels,
                    channels);
    stages.push_back(stage);
  }
  return stages;
}

const bfloat16_bits* advanced(const void* start, int64_t by) {
  return start == nullptr ? nullptr : static_cast<const bfloat16_bits*>(start) + by;
}

// Runs all stages for the samples [first, first + count) with this many threads. Each stage reads the previous stage's
// result while it is in the cache.
void run_stages(
    const std::vector<glam::Stage>& stages,
    const bfloat16_bits* f_0,
    const uint8_t* mask,
    int64_t first,
    int64_t count,
    int64_t threads,
    Workspace<bfloat16_bits>* features) {
  const bfloat16_bits* f = advanced(f_0, first * stages[0].attention.pixels * stages[0].attention.channels);
  for (size_t i = 0; i < stages.size(); ++i) {
    glam::Stage stage = stages[i];
    attention_mix::Arguments& attention = stage.attention;
    attention.features = f;
    attention.words = advanced(attention.words, first * attention.words_per_sample * attention.channels);
    attention.sentence = advanced(attention.sentence, first * attention.channels);
    attention.mask = mask + first * attention.words_per_sample;
    attention.samples = count;
    const int64_t pixels = 4 * attention.pixels;
    if (stage.head) {
      stage.head->out = static_cast<uint8_t*>(stage.head->out) + first * pixels * stage.head->out_channels;
    } else {
      stage.out = features[i % 2].at_least(count * pixels * stage.layers.back().out_channels);
      f = stage.out;
    }
    glam::run_stage(stage, threads);
  }
}

void glam_cpu(
    const Tensor& noise,
    const Tensor& condition_noise,
    const Tensor& words,
    const Tensor& mask,
    const Tensor& sentence,
    const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases,
    const std::vector<Tensor>& mixes,
    const std::vector<Tensor>& sentence_weights,
    int64_t upsamples,
    Tensor out) {
  static thread_local Memory memory;
  MIRRORGAN_CHECK(chosen_instruction_set() == InstructionSet::amx, kOp, "the processor",
                  name_of(chosen_instruction_set()), "amx");
  const Inputs in(noise, condition_noise, words, mask, sentence);
  Layers layers{weights, biases, mixes, sentence_weights, upsamples};
  const bfloat16_bits* s_ca = augment(in, layers, memory);
  const Map f_0 = run_first(in, layers, s_ca, memory);
  std::vector<glam::Stage> stages = take_stages(in, layers, f_0, s_ca, memory);
  const int64_t side = f_0.side << stages.size();
  checked("out", out, ScalarType::Byte, {in.samples, side, side, biases.back().numel()});
  glam::add_head(kOp, weights.back(), biases.back(), static_cast<uint8_t*>(out.mutable_data_ptr()), stages.back());

  // Each thread computes whole images and takes the next one when it is done, as far as all threads get the same
  // number. The remaining images are shared by all threads.
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t own_images = in.samples / threads * threads;
  std::atomic<int64_t> next = 0;
  parallel_for(own_images > 0 ? threads : 0, [&](int64_t, int64_t) {
    static thread_local Workspace<bfloat16_bits> features[2];
    for (int64_t n = next++; n < own_images; n = next++) {
      run_stages(stages, f_0.f, in.mask, n, 1, 1, features);
    }
  });
  if (own_images < in.samples) {
    run_stages(stages, f_0.f, in.mask, own_images, in.samples - own_images, threads, memory.features);
  }
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam", TORCH_BOX(&mirrorgan::glam_cpu));
}

#endif
