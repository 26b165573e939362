// What the two forms of mirrorgan::bidirectional_lstm share.

#pragma once

#include <cstdint>

#include "convolution.h"

namespace mirrorgan::lstm {

constexpr int64_t kGates = 4;                   // input, forget, cell, output
constexpr int64_t kUnits = convolution::kHalf;  // units of a group, whose gates are two blocks of columns

struct Arguments {
  const float* gates;      // (V, 2, 4H), units in groups of 16, with the four gates of a group one after the other
  const int64_t* tokens;   // (N, T)
  const int64_t* lengths;  // (N)
  const void* recurrent;   // (2, 4H / 32, H / 32, 2, kTile), float or bfloat16
  float* states;           // (N, T, 2, H)
  float* last;             // (N, 2, H)
  int64_t samples, words, units;

  // The index of the word that a direction reads at a step.
  int64_t word(int64_t sample, int64_t step, int64_t direction) const {
    return sample * words + (direction == 0 ? step : lengths[sample] - 1 - step);
  }

  // Where the gates and the states of a word start, from a unit on, and the last states of a caption.
  const float* gates_of(int64_t word, int64_t direction, int64_t unit) const {
    return gates + ((tokens[word] * 2 + direction) * units + unit) * kGates;
  }
  float* states_of(int64_t word, int64_t direction, int64_t unit) const {
    return states + (word * 2 + direction) * units + unit;
  }
  float* last_of(int64_t sample, int64_t direction, int64_t unit) const {
    return last + (sample * 2 + direction) * units + unit;
  }

  int64_t max_length(int64_t first, int64_t count) const {
    int64_t maximum = 0;
    for (int64_t sample = first; sample < first + count; ++sample) {
      maximum = lengths[sample] > maximum ? lengths[sample] : maximum;
    }
    return maximum;
  }
};

#if defined(MIRRORGAN_X86)
constexpr int64_t kCaptionsAmx = 16;  // captions that are processed together: the rows of a tile

// Processes captions [first, first + count) in one direction, with AMX.
void read_captions_amx(const Arguments& a, int64_t first, int64_t count, int64_t direction);
#endif

}  // namespace mirrorgan::lstm
