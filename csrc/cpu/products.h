// Products in float32 with weights packed by mirrorgan_fast/ops/packing.py, and the epilogues that turn their sums into
// results, for any processor.

#pragma once

#include <cstdint>
#include <type_traits>

#include "convolution.h"
#include "instruction_sets.h"

namespace mirrorgan::convolution {

// Writes the sums of Rows pixels and Halves halves of columns, over all taps and channels, into the block.
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
        weight += kTile;  // skip the other half
      }
#pragma GCC unroll 8
      for (int v = 0; v < Halves * kVectors; ++v) {
        Float columns;  // not an array, which would go through memory
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

// Converts the weights of a block to float32, from pairs of neighboring channels (16, kHalf, 2) to (kDepth, kHalf).
MIRRORGAN_INLINE void widen(const bfloat16_bits* pairs, float* wide, int64_t tiles) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t i = 0; i < kTile; ++i) {
      wide[(i / kColumns * 2 + i % 2) * kHalf + i % kColumns / 2] = to_float(pairs[i]);
    }
    pairs += kTile;
    wide += kTile;
  }
}

// One way to compute products, in float32 (InFloats) or bfloat16 (InPairs): the type of the window, how many pixels and
// halves are computed together, and the weights of a block.
template <typename scalar_t, int Lanes, int Rows, int Halves>
struct InFloats {
  using compute_t = float;
  static constexpr int kRows = Rows, kHalves = Halves;
  static constexpr bool kWidens = !std::is_same_v<scalar_t, float>;

  static MIRRORGAN_INLINE const float* panel(const scalar_t* weight, float* wide, int64_t tiles) {
    if constexpr (kWidens) {
      widen(weight, wide, tiles);
      return wide;
    } else {
      return weight;
    }
  }

  template <int OfHalves>
  static MIRRORGAN_INLINE void multiply(
      const Window<float>& window, int64_t offset, const Phase& phase, const float* columns, float* sums) {
    convolution::multiply<Lanes, Rows, OfHalves>(window, offset, phase, columns, sums);
  }
};

#if defined(MIRRORGAN_X86)
struct InPairs {
  using compute_t = bfloat16_bits;
  static constexpr int kRows = kPairRows, kHalves = 2;
  static constexpr bool kWidens = false;

  static MIRRORGAN_INLINE const bfloat16_bits* panel(const bfloat16_bits* weight, bfloat16_bits*, int64_t) {
    return weight;
  }

  template <int OfHalves>
  static MIRRORGAN_INLINE void multiply(
      const Window<bfloat16_bits>& window,
      int64_t offset,
      const Phase& phase,
      const bfloat16_bits* columns,
      float* sums) {
    multiply_pairs(window, offset, phase, columns, OfHalves, sums);
  }
};
#endif

// (1 + tanh(x)) * 127.5
template <int Lanes>
MIRRORGAN_INLINE void gray_level(typename Vector<Lanes>::Float& x) {
  typename Vector<Lanes>::Float s, rest;
  sigmoid<Lanes>(x + x, s, rest);
  x = s * 255.0f;
}

// Rounds to a gray level. NaN becomes 0.
MIRRORGAN_INLINE uint8_t to_byte(float level) {
  level += 0.5f;
  return static_cast<uint8_t>(level >= 255.0f ? 255.0f : level >= 0.0f ? level : 0.0f);
}

// Computes and writes the result of one pixel and the channels of a half, from its sums (and those of the gates).
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
      gray_level<Lanes>(value);
      for (int64_t i = 0; i < Lanes && c + i < valid; ++i) {
        static_cast<uint8_t*>(a.out)[at + channel + c + i] = to_byte(value[i]);
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
      if (epilogue == Epilogue::add && a.relu) {
        value = value < 0.0f ? Float{} : value;  // NaN stays
      }
      store<Lanes>(value, out);
      continue;
    }
    for (int64_t i = 0; c + i < valid; ++i) {
      const float sum = a.residual == nullptr ? value[i] : value[i] + to_float(residual[i]);
      store(a.relu && sum < 0.0f ? 0.0f : sum, out + i);
    }
  }
}

}  // namespace mirrorgan::convolution
