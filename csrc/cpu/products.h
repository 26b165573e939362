// Products in float32 with weights as mirrorgan_fast/ops/packing.py packs them, on any processor.

#pragma once

#include <cstdint>

#include "convolution.h"
#include "instruction_sets.h"

namespace mirrorgan::convolution {

// Sums of Rows pixels and Halves halves of columns, over all taps and channels, into the block.
template <int Lanes, int Rows, int Halves>
MIRRORGAN_INLINE void multiply(
    const Window<float>& window,
    int64_t offset,
    const Phase& phase,
    const float* weight,
    float* sums) {
  using Float = typename Vector<Lanes>::Float;
  constexpr int kVectors = kHalf / Lanes;
  Float total[Rows][Halves * kVectors] = {};
  for (int64_t tap = 0; tap < phase.taps; ++tap) {
    const float* pixel = window.at(offset, phase.dy[tap], phase.dx[tap]);
    for (int64_t channel = 0; channel < window.channels; ++channel) {
      if (channel != 0 && channel % kDepth == 0) {
        weight += kTile;  // over the other half
      }
#pragma GCC unroll 8
      for (int v = 0; v < Halves * kVectors; ++v) {
        Float columns;  // (an array of them would go through memory)
        load<Lanes>(weight + v / kVectors * kTile + v % kVectors * Lanes, columns);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          total[r][v] += pixel[r * window.channels + channel] * columns;
        }
      }
      weight += kHalf;
    }
    weight += kTile;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Halves * kVectors; ++v) {
      store<Lanes>(total[r][v], sums + v / kVectors * kPixels * kHalf + r * kHalf + v % kVectors * Lanes);
    }
  }
}

}  // namespace mirrorgan::convolution
