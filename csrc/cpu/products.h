// Products in float32 with weights as mirrorgan_fast/ops/packing.py packs them, and what becomes of their sums, on any
// processor.

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

// (1 + tanh(x)) * 127.5
template <int Lanes>
MIRRORGAN_INLINE void grey_level(typename Vector<Lanes>::Float& x) {
  typename Vector<Lanes>::Float s, rest;
  sigmoid<Lanes>(x + x, s, rest);
  x = s * 255.0f;
}

// The result of one pixel, and of the channels of a half: what its sums (and those of their gates) become.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void write_half(
    const Arguments& a, Epilogue epilogue, const float* sums, const float* bias, int64_t channel, int64_t at) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t valid = a.out_channels - channel < kHalf ? a.out_channels - channel : kHalf;
  for (int64_t c = 0; c < valid; c += Lanes) {
    Float value, add;
    load<Lanes>(sums + c, value);
    load<Lanes>(bias + c, add);
    value += add;
    if (epilogue == Epilogue::glu) {
      Float gate;
      load<Lanes>(sums + kPixels * kHalf + c, gate);
      load<Lanes>(bias + kHalf + c, add);
      Float s, rest;
      sigmoid<Lanes>(gate + add, s, rest);
      value *= s;
    }
    if (epilogue == Epilogue::image) {
      grey_level<Lanes>(value);
      for (int64_t i = 0; i < Lanes && c + i < valid; ++i) {
        const float level = value[i] + 0.5f;
        static_cast<uint8_t*>(a.out)[at + channel + c + i] =
            static_cast<uint8_t>(level >= 255.0f ? 255.0f : level >= 0.0f ? level : 0.0f);
      }
      continue;
    }
    scalar_t* out = static_cast<scalar_t*>(a.out) + at + channel + c;
    const auto* residual =
        a.residual == nullptr ? nullptr : static_cast<const scalar_t*>(a.residual) + at + channel + c;
    if (c + Lanes <= valid) {
      if (epilogue == Epilogue::add && a.residual != nullptr) {
        load<Lanes>(residual, add);
        value += add;
      }
      store<Lanes>(value, out);
      continue;
    }
    for (int64_t i = 0; c + i < valid; ++i) {
      store(a.residual == nullptr ? value[i] : value[i] + to_float(residual[i]), out + i);
    }
  }
}

}  // namespace mirrorgan::convolution
