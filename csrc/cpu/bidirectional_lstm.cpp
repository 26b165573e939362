// mirrorgan::bidirectional_lstm on the CPU. What it computes is defined in mirrorgan_fast/ops/bidirectional_lstm.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../checks.h"
#include "bidirectional_lstm.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"
#include "workspace.h"

namespace mirrorgan {

namespace lstm {
namespace {

using namespace convolution;

constexpr int64_t kCaptions = 8;  // captions that are processed together: they share each read of the weights

template <int Lanes>
MIRRORGAN_INLINE void tanh(typename Vector<Lanes>::Float& x) {
  typename Vector<Lanes>::Float s, rest;
  sigmoid<Lanes>(x + x, s, rest);
  x = s - rest;
}

// Computes the states of sixteen units of one caption after a word, from the products of both blocks.
template <int Lanes>
MIRRORGAN_INLINE void update(const float* sums, const float* gates, float* cell, float* hidden) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t unit = 0; unit < kUnits; unit += Lanes) {
    Float gate[kGates], from_word, memory, rest;
#pragma GCC unroll 4
    for (int i = 0; i < kGates; ++i) {
      load<Lanes>(sums + i * kPixels * kHalf + unit, gate[i]);
      load<Lanes>(gates + i * kUnits + unit, from_word);
      gate[i] += from_word;
    }
    sigmoid<Lanes>(gate[0], gate[0], rest);
    sigmoid<Lanes>(gate[1], gate[1], rest);
    tanh<Lanes>(gate[2]);
    sigmoid<Lanes>(gate[3], gate[3], rest);
    load<Lanes>(cell + unit, memory);
    memory = gate[1] * memory + gate[0] * gate[2];
    store<Lanes>(memory, cell + unit);
    tanh<Lanes>(memory);
    store<Lanes>(gate[3] * memory, hidden + unit);
  }
}

// Processes some captions in one direction. `memory` has room for three times kCaptions * units.
template <int Lanes, int Rows, int Halves>
MIRRORGAN_INLINE void read_captions(
    const Arguments& a, int64_t first, int64_t count, int64_t direction, float* memory) {
  const int64_t size = kCaptions * a.units, panel = a.units / kDepth * 2 * kTile;
  const auto* recurrent = static_cast<const float*>(a.recurrent);
  float *hidden = memory, *next = memory + size, *cell = memory + 2 * size;
  for (int64_t i = 0; i < 3 * size; ++i) {
    memory[i] = 0.0f;
  }
  const Phase phase{0, 1, {0}, {0}};
  float sums[kGates * kPixels * kHalf];
  const int64_t max_length = a.max_length(first, count);
  for (int64_t step = 0; step < max_length; ++step) {
    const Window<float> window{{hidden, hidden, hidden}, 0, 0, a.units};
    for (int64_t group = 0; group < a.units / kUnits; ++group) {
      const float* weight = recurrent + (direction * a.units / kUnits + group) * 2 * panel;
      for (int64_t row = 0; row < count; row += Rows) {
        for (int64_t half = 0; half < kGates; half += Halves) {
          multiply<Lanes, Rows, Halves>(window, row, phase, weight + half / 2 * panel + half % 2 * kTile,
                                        sums + (half * kPixels + row) * kHalf);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t sample = first + r;
        if (step >= a.lengths[sample]) {
          continue;
        }
        const int64_t word = a.word(sample, step, direction), unit = group * kUnits;
        float *state = next + r * a.units + unit, *word_states = a.states_of(word, direction, unit);
        update<Lanes>(sums + r * kHalf, a.gates_of(word, direction, unit), cell + r * a.units + unit, state);
        for (int64_t i = 0; i < kUnits; ++i) {
          word_states[i] = state[i];
        }
        if (step == a.lengths[sample] - 1) {
          float* last = a.last_of(sample, direction, unit);
          for (int64_t i = 0; i < kUnits; ++i) {
            last[i] = state[i];
          }
        }
      }
    }
    float* const before = hidden;
    hidden = next;
    next = before;
  }
}

#define MIRRORGAN_READ(name, lanes, rows, halves, target)                                                    \
  target void name(const Arguments& a, int64_t first, int64_t count, int64_t direction, float* memory) {     \
    read_captions<lanes, rows, halves>(a, first, count, direction, memory);                                  \
  }

MIRRORGAN_READ(read_baseline, 4, 2, 1, )
#if defined(MIRRORGAN_X86)
MIRRORGAN_READ(read_avx2, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_READ(read_avx512, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
#endif

// Writes zeros after the last word of each caption.
void clear_padding(const Arguments& a, int64_t first, int64_t count, int64_t direction) {
  for (int64_t sample = first; sample < first + count; ++sample) {
    for (int64_t word = a.lengths[sample]; word < a.words; ++word) {
      std::fill_n(a.states_of(sample * a.words + word, direction, 0), a.units, 0.0f);
    }
    if (a.lengths[sample] == 0) {
      std::fill_n(a.last_of(sample, direction, 0), a.units, 0.0f);
    }
  }
}

void read_captions_in_floats(const Arguments& a, int64_t first, int64_t count, int64_t direction) {
  static thread_local Workspace<float> memory;
  MIRRORGAN_CHOSEN(read)(a, first, count, direction, memory.at_least(3 * kCaptions * a.units));
}

}  // namespace
}  // namespace lstm

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void bidirectional_lstm_cpu(
    const Tensor& gates,
    const Tensor& tokens,
    const Tensor& lengths,
    const Tensor& recurrent,
    Tensor states,
    Tensor last) {
  constexpr const char* kOp = "bidirectional_lstm";
  const auto check = [](const char* argument, const Tensor& tensor, ScalarType dtype) {
    MIRRORGAN_CHECK(tensor.scalar_type() == dtype, kOp, argument, tensor.scalar_type(), dtype);
    MIRRORGAN_CHECK(tensor.is_contiguous(), kOp, argument, "strides " + shape_text(tensor.strides()), "a contiguous tensor");
  };
  const Tensor dense_gates = torch::stable::contiguous(gates), dense_tokens = torch::stable::contiguous(tokens);
  const Tensor dense_lengths = torch::stable::contiguous(lengths);
  check("gates", dense_gates, ScalarType::Float);
  check("tokens", dense_tokens, ScalarType::Long);
  check("lengths", dense_lengths, ScalarType::Long);
  const bool narrow = recurrent.scalar_type() == ScalarType::BFloat16;
  check("recurrent", recurrent, narrow ? ScalarType::BFloat16 : ScalarType::Float);
  check("states", states, ScalarType::Float);
  check("last", last, ScalarType::Float);
  MIRRORGAN_CHECK(gates.dim() == 3, kOp, "gates", shape_text(gates.sizes()), "(V, 2, 4H)");
  MIRRORGAN_CHECK(tokens.dim() == 2, kOp, "tokens", shape_text(tokens.sizes()), "(N, T)");
  using namespace lstm;
  using convolution::kColumns, convolution::kDepth, convolution::kHalf;
  lstm::Arguments a{};
  a.samples = tokens.size(0);
  a.words = tokens.size(1);
  a.units = gates.size(2) / kGates;
  MIRRORGAN_CHECK(a.units > 0 && a.units % kDepth == 0, kOp, "gates", shape_text(gates.sizes()), "a multiple of 32 units");
  MIRRORGAN_CHECK_SHAPE(kOp, "gates", gates, {gates.size(0), 2, kGates * a.units});
  MIRRORGAN_CHECK_SHAPE(kOp, "lengths", lengths, {a.samples});
  MIRRORGAN_CHECK_SHAPE(kOp, "recurrent", recurrent,
                        {2, kGates * a.units / kColumns, 1, a.units / kDepth, 2, narrow ? kHalf : kDepth,
                         narrow ? kDepth : kHalf});
  MIRRORGAN_CHECK_SHAPE(kOp, "states", states, {a.samples, a.words, 2, a.units});
  MIRRORGAN_CHECK_SHAPE(kOp, "last", last, {a.samples, 2, a.units});
  a.gates = static_cast<const float*>(dense_gates.const_data_ptr());
  // These are copied, so that the checked values stay valid even if the results are written into the same memory.
  static thread_local Workspace<int64_t> kept_tokens, kept_lengths;
  a.tokens = std::copy_n(static_cast<const int64_t*>(dense_tokens.const_data_ptr()), a.samples * a.words,
                         kept_tokens.at_least(a.samples * a.words)) - a.samples * a.words;
  a.lengths = std::copy_n(static_cast<const int64_t*>(dense_lengths.const_data_ptr()), a.samples,
                          kept_lengths.at_least(a.samples)) - a.samples;
  a.recurrent = recurrent.const_data_ptr();
  a.states = static_cast<float*>(states.mutable_data_ptr());
  a.last = static_cast<float*>(last.mutable_data_ptr());
  for (int64_t n = 0; n < a.samples; ++n) {
    MIRRORGAN_CHECK(a.lengths[n] >= 0 && a.lengths[n] <= a.words, kOp, "lengths", a.lengths[n], "0 to T");
    for (int64_t i = n * a.words; i < n * a.words + a.lengths[n]; ++i) {
      MIRRORGAN_CHECK(a.tokens[i] >= 0 && a.tokens[i] < gates.size(0), kOp, "tokens", a.tokens[i], "0 to V - 1");
    }
  }
  auto read = read_captions_in_floats;
  int64_t captions_per_task = kCaptions;
  if (narrow && chosen_instruction_set() == InstructionSet::amx) {
#if defined(MIRRORGAN_X86)
    read = read_captions_amx;
    captions_per_task = kCaptionsAmx;
#endif
  } else if (narrow) {
    static thread_local Workspace<float> workspace;
    float* wide = workspace.at_least(recurrent.numel());
    convolution::widen(static_cast<const bfloat16_bits*>(a.recurrent), wide, recurrent.numel() / kTile);
    a.recurrent = wide;
  }
  const int64_t groups = convolution::divide_up(a.samples, captions_per_task);
  parallel_for(2 * groups, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / 2 * captions_per_task, count = std::min(captions_per_task, a.samples - first);
      const int64_t direction = task % 2;
      read(a, first, count, direction);
      clear_padding(a, first, count, direction);
    }
  });
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("bidirectional_lstm", TORCH_BOX(&mirrorgan::bidirectional_lstm_cpu));
}
