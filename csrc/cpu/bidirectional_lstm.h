// What the forms of mirrorgan::bidirectional_lstm share.

#pragma once

#include <cstdint>

#include "convolution.h"

namespace mirrorgan::lstm {

constexpr int64_t kGates = 4;                   // input, forget, cell, output
constexpr int64_t kUnits = convolution::kHalf;  // whose gates lie together, in two blocks of columns

struct Arguments {
  const float* gates;      // (V, 2, 4H), units in groups of 16, the four gates of a group after each other
  const int64_t* tokens;   // (N, T)
  const int64_t* lengths;  // (N)
  const void* recurrent;   // (2, 4H / 32, H / 32, 2, kTile), of float or bfloat16
  float* states;           // (N, T, 2, H)
  float* last;             // (N, 2, H)
  int64_t samples, words, units;

  // Where a caption's word of a step has its gates and its states, from a unit on.
  int64_t word(int64_t sample, int64_t step, int64_t direction) const {
    return sample * words + (direction == 0 ? step : lengths[sample] - 1 - step);
  }
  const float* gates_of(int64_t word, int64_t direction, int64_t unit) const {
    return gates + ((tokens[word] * 2 + direction) * units + unit) * kGates;
  }
  float* states_of(int64_t word, int64_t direction, int64_t unit) const {
    return states + (word * 2 + direction) * units + unit;
  }
  float* last_of(int64_t sample, int64_t direction, int64_t unit) const {
    return last + (sample * 2 + direction) * units + unit;
  }

  int64_t longest(int64_t first, int64_t count) const {
    int64_t most = 0;
    for (int64_t sample = first; sample < first + count; ++sample) {
      most = lengths[sample] > most ? lengths[sample] : most;
    }
    return most;
  }
};

#if defined(MIRRORGAN_X86)
constexpr int64_t kCaptionsAmx = 16;  // that go through a direction together, the rows of a tile

// Captions [first, first + count) in one direction, with bfloat16 products of AMX's tiles.
void read_captions_amx(const Arguments& a, int64_t first, int64_t count, int64_t direction);
#endif

}  // namespace mirrorgan::lstm
