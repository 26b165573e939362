// mirrorgan::glam_attention_mix on the CPU. What it computes is defined in mirrorgan_fast/ops/glam_attention_mix.py.
//
// One pass over the feature map: a block of pixels is read once, both attentions are computed on it while it is in the
// first-level cache, and only the mixed result is written.

#include "glam_attention_mix.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "glam_attention_mix_inputs.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "pixel_tiles.h"
#include "workspace.h"

namespace mirrorgan {
namespace {

using attention_mix::Arguments;
using attention_mix::Sample;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "glam_attention_mix";

int64_t sample_floats(const Arguments& a) {
  const int64_t channels = a.channels, words = a.words_per_sample;
  return words * channels + channels + channels * channels + (2 * channels + std::max(words, channels)) * a.out_channels;
}

// Transposes the mix, which all samples share, to (2C or 3C, O).
template <typename scalar_t>
void transpose_mix(const Arguments& a, float* mix) {
  const auto* source = static_cast<const scalar_t*>(a.mix);
  const int64_t rows = a.channels * (a.sentence == nullptr ? 2 : 3);
  for (int64_t o = 0; o < a.out_channels; ++o) {
    for (int64_t row = 0; row < rows; ++row) {
      mix[row * a.out_channels + o] = to_float(source[o * rows + row]);
    }
  }
}

template <typename scalar_t>
MIRRORGAN_INLINE Sample prepare(
    const Arguments& a, const float* shared_mix, int64_t max_folded_words, int64_t index, float* storage) {
  const int64_t channels = a.channels, out_channels = a.out_channels;
  float* keys = storage;
  float* sentence = keys + a.words_per_sample * channels;
  float* gate = sentence + channels;
  float* mix = gate + channels * channels;

  const auto* source = static_cast<const scalar_t*>(a.words) + index * a.words_per_sample * channels;
  int64_t words = 0;
  for (int64_t t = 0; t < a.words_per_sample; ++t) {
    if (a.mask[index * a.words_per_sample + t]) {
      for (int64_t c = 0; c < channels; ++c) {
        keys[words * channels + c] = to_float(source[t * channels + c]);
      }
      ++words;
    }
  }

  const bool folded = words <= max_folded_words;
  const float* mix_w = shared_mix + channels * out_channels;
  float* words_mix = std::copy_n(shared_mix, channels * out_channels, mix);
  float* gates_mix = words_mix + (folded ? words : channels) * out_channels;
  if (folded) {
    std::fill(words_mix, gates_mix, 0.0f);
    for (int64_t t = 0; t < words; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t o = 0; o < out_channels; ++o) {
          words_mix[t * out_channels + o] += keys[t * channels + c] * mix_w[c * out_channels + o];
        }
      }
    }
  } else {
    std::copy_n(mix_w, channels * out_channels, words_mix);
  }
  if (a.sentence == nullptr) {
    return {words, keys, sentence, gate, mix, folded};
  }

  const auto* sentence_values = static_cast<const scalar_t*>(a.sentence) + index * channels;
  const auto* weight = static_cast<const scalar_t*>(a.sentence_weight);
  const float* mix_s = mix_w + channels * out_channels;
  for (int64_t c = 0; c < channels; ++c) {
    sentence[c] = to_float(sentence_values[c]);
  }
  for (int64_t row = 0; row < channels; ++row) {
    // 0, or NaN if the row of the gate has a NaN. AMX's softmax would treat a NaN score as the lowest score.
    float nan_or_zero = 0.0f;
    for (int64_t c = 0; c < channels; ++c) {
      const float factor = weight != nullptr ? to_float(weight[row * channels + c]) : row == c ? 1.0f : 0.0f;
      gate[row * channels + c] = factor * sentence[c];
      nan_or_zero += 0.0f * gate[row * channels + c];
    }
    for (int64_t o = 0; o < out_channels; ++o) {
      gates_mix[row * out_channels + o] = mix_s[row * out_channels + o] * sentence[row] + nan_or_zero;
    }
  }
  return {words, keys, sentence, gate, mix, folded};
}

// --- with float32 vectors --------------------------------------------------------------------------------------------

// Computes the pixels [first_pixel, end_pixel) of a sample. `features` and `out` point to the sample.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void attend(
    const Arguments& a,
    const Sample& sample,
    const void* features,
    void* out,
    int64_t first_pixel,
    int64_t end_pixel,
    float* scratch) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t channels = a.channels;
  float* f = scratch;  // followed by the shares of the words and of the gates: together, the rows that the mix multiplies
  float* words = f + channels * kBlock;
  float* gates = words + sample.words * kBlock;
  float* result = gates + a.gates() * kBlock;
  for (int64_t first = first_pixel; first < end_pixel; first += kBlock) {
    const int64_t valid = end_pixel - first < kBlock ? end_pixel - first : kBlock;
    read_tile(f, static_cast<const scalar_t*>(features), MapLayout{channels, a.pixels, true}, first, valid);
    if (sample.words > 0) {
      multiply<Lanes>(words, sample.keys, channels, 1, f, sample.words, channels);
      softmax<Lanes>(words, sample.words);
    }
    if (a.sentence_weight != nullptr) {
      multiply<Lanes>(gates, sample.gate, channels, 1, f, channels, channels);
    } else {
      for (int64_t c = 0; c < a.gates(); ++c) {
        for (int64_t p = 0; p < kBlock; p += Lanes) {
          *reinterpret_cast<Float*>(gates + c * kBlock + p) =
              *reinterpret_cast<const Float*>(f + c * kBlock + p) * sample.sentence[c];
        }
      }
    }
    if (a.sentence != nullptr) {
      softmax<Lanes>(gates, channels);
    }
    multiply<Lanes>(result, sample.mix, 1, a.out_channels, f, a.out_channels, channels + sample.words + a.gates());
    write_tile(result, a.out_channels, static_cast<scalar_t*>(out), MapLayout{a.out_channels, a.pixels, true}, 0, first,
               valid);
  }
}

struct Form {
  Sample (*prepare)(const Arguments&, const float*, int64_t, int64_t, float*);
  void (*attend)(const Arguments&, const Sample&, const void*, void*, int64_t, int64_t, float*);
};

#define MIRRORGAN_FORM(name, scalar_t, lanes, target)                                                              \
  target Sample prepare_##name(const Arguments& a, const float* mix, int64_t max_folded_words, int64_t index,           \
                               float* storage) {                                                                   \
    return prepare<scalar_t>(a, mix, max_folded_words, index, storage);                                                 \
  }                                                                                                                \
  target void attend_##name(const Arguments& a, const Sample& sample, const void* features, void* out,             \
                            int64_t first, int64_t end, float* scratch) {                                          \
    attend<scalar_t, lanes>(a, sample, features, out, first, end, scratch);                                        \
  }                                                                                                                \
  constexpr Form name{prepare_##name, attend_##name};

#define MIRRORGAN_FORMS(set, lanes, target) \
  MIRRORGAN_FORM(float_##set, float, lanes, target) \
  MIRRORGAN_FORM(bfloat16_##set, bfloat16_bits, lanes, target)

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_FORMS)

template <typename scalar_t>
Form chosen_form() {
  return std::is_same_v<scalar_t, float> ? MIRRORGAN_CHOSEN(float) : MIRRORGAN_CHOSEN(bfloat16);
}

// --- the whole op ------------------------------------------------------------------------------------------------------

// Calls work(sample, features, out, first, end) for parts of every sample.
template <typename scalar_t, typename Work>
void for_tasks(const Arguments& a, const Work& work) {
  const int64_t task_pixels = kBlock * kBlocksPerTask;
  const int64_t tasks_per_sample = (a.pixels + task_pixels - 1) / task_pixels;
  parallel_for(a.samples * tasks_per_sample, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / tasks_per_sample, first = task % tasks_per_sample * task_pixels;
      const auto* features = static_cast<const scalar_t*>(a.features) + sample * a.pixels * a.channels;
      auto* out = static_cast<scalar_t*>(a.out) + sample * a.pixels * a.out_channels;
      work(sample, features, out, first, std::min(first + task_pixels, a.pixels));
    }
  });
}

// Prepares the matrices of all samples, in memory of this thread, and calls use(index, sample) for each sample. The mix is
// folded into at most `max_folded_words` words.
template <typename scalar_t, typename Use>
void prepare_all(const Arguments& a, int64_t max_folded_words, const Use& use) {
  static thread_local Workspace<float> workspace;
  const int64_t size = sample_floats(a);
  float* storage = workspace.at_least(a.samples * size + 3 * a.channels * a.out_channels);
  float* mix = storage + a.samples * size;
  transpose_mix<scalar_t>(a, mix);
  const auto prepare = chosen_form<scalar_t>().prepare;
  parallel_for(a.samples, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      use(index, prepare(a, mix, max_folded_words, index, storage + index * size));
    }
  });
}

template <typename scalar_t>
void run(const Arguments& a) {
#if defined(MIRRORGAN_X86)
  if constexpr (std::is_same_v<scalar_t, bfloat16_bits>) {
    if (chosen_instruction_set() == InstructionSet::amx) {
      const attention_mix::Panels* panels = attention_mix::prepare_panels(a);
      for_tasks<bfloat16_bits>(
          a, [&](int64_t sample, const bfloat16_bits* features, bfloat16_bits* out, int64_t first, int64_t end) {
            attention_mix::attend_amx(a, panels[sample], features + first * a.channels, out + first * a.out_channels, 1,
                                      end - first, 0);
          });
      return;
    }
  }
#endif
  static thread_local std::vector<Sample> thread_samples;
  thread_samples.resize(static_cast<size_t>(a.samples));
  Sample* samples = thread_samples.data();  // a pointer, as `thread_samples` is another variable in each worker thread
  prepare_all<scalar_t>(a, a.words_per_sample, [&](int64_t index, const Sample& sample) { samples[index] = sample; });
  const auto attend = chosen_form<scalar_t>().attend;
  for_tasks<scalar_t>(a, [&](int64_t sample, const scalar_t* features, scalar_t* out, int64_t first, int64_t end) {
    static thread_local Workspace<float> workspace;
    const int64_t rows = 2 * a.channels + a.words_per_sample + a.out_channels;
    attend(a, samples[sample], features, out, first, end, workspace.at_least(rows * kBlock));
  });
}

}  // namespace

#if defined(MIRRORGAN_X86)
const attention_mix::Panels* attention_mix::prepare_panels(const Arguments& a) {
  static thread_local Workspace<bfloat16_bits> workspace;
  static thread_local std::vector<Panels> of_samples;
  const int64_t size = panels_size(a);
  bfloat16_bits* storage = workspace.at_least(a.samples * size);
  of_samples.resize(static_cast<size_t>(a.samples));
  Panels* panels = of_samples.data();
  prepare_all<bfloat16_bits>(a, max_folded_words(a), [&](int64_t index, const Sample& sample) {
    panels[index] = pack_panels(a, sample, storage + index * size);
  });
  return panels;
}
#endif

namespace {

void glam_attention_mix_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    Tensor out) {
  const ScalarType dtype = features.scalar_type();
  attention_mix::Inputs inputs(kOp, features, words, mask, sentence, sentence_weight, mix);
  Arguments& a = inputs.arguments;
  check_map(kOp, "out", out, dtype, {a.samples, a.out_channels, features.size(2), features.size(3)});
  if (out.numel() == 0) {
    return;
  }
  a.out = out.mutable_data_ptr();
  if (dtype == ScalarType::BFloat16) {
    run<bfloat16_bits>(a);
  } else {
    run<float>(a);
  }
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam_attention_mix", TORCH_BOX(&mirrorgan::glam_attention_mix_cpu));
}
