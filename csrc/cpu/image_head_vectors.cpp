// The form of mirrorgan::image_head for vectors of float32. The lanes of a vector are input channels of a pixel.
//
// In the other convolutions they are channels of the result, of which an image has only three. Here each input pixel's
// vector is multiplied with its tap for each of the three channels, for four pixels of the result together. The lanes
// are summed at the end.

#include "image_head.h"

#include <type_traits>

#include "instruction_sets.h"
#include "products.h"
#include "workspace.h"

namespace mirrorgan::image_head {
namespace {

using namespace convolution;

constexpr int kOutputs = kImageChannels, kPixelsAtOnce = 4, kSide = 3;

#if defined(__clang__)
#define MIRRORGAN_SHUFFLE(one, other, ...) __builtin_shufflevector(one, other, __VA_ARGS__)
#else  // GCC has __builtin_shufflevector only from version 12 on
#define MIRRORGAN_SHUFFLE(one, other, ...) __builtin_shuffle(one, other, Vector<4>::Int{__VA_ARGS__})
#endif

int64_t taps_size(const Arguments& a) {
  return kSide * kSide * a.channels * kOutputs;
}

// Reorders packed weights to (rows, channels / Lanes, columns, kOutputs, Lanes), the order in which they are read.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void order_taps(const Arguments& a, float* taps) {
  const auto* packed = static_cast<const scalar_t*>(a.weight);
  const int64_t steps_of_tap = a.steps / a.taps;
  for (int64_t row = 0; row < kSide; ++row) {
    for (int64_t first = 0; first < a.channels; first += Lanes) {
      for (int64_t tap = row * kSide; tap < (row + 1) * kSide; ++tap) {
        for (int64_t o = 0; o < kOutputs; ++o) {
          for (int64_t channel = first; channel < first + Lanes; ++channel) {
            const int64_t tile = 2 * (tap * steps_of_tap + channel / kDepth), depth = channel % kDepth;
            const int64_t at = std::is_same_v<scalar_t, float> ? depth * kHalf + o
                                                               : depth / 2 * kColumns + 2 * o + depth % 2;
            *taps++ = o < a.out_channels ? to_float(packed[tile * kTile + at]) : 0.0f;
          }
        }
      }
    }
  }
}

// Sums the lanes of each of four vectors.
template <int Lanes>
MIRRORGAN_INLINE void sum_lanes(const typename Vector<Lanes>::Float (&vectors)[kPixelsAtOnce], float* out) {
  using Quad = Vector<4>::Float;
  Quad sums[kPixelsAtOnce];
  for (int i = 0; i < kPixelsAtOnce; ++i) {
    alignas(64) float lanes[Lanes];
    store<Lanes>(vectors[i], lanes);
    load<4>(lanes, sums[i]);
    for (int lane = 4; lane < Lanes; lane += 4) {
      Quad others;
      load<4>(lanes + lane, others);
      sums[i] += others;
    }
  }
  Quad pairs[2];
  for (int i = 0; i < 2; ++i) {
    const Quad &one = sums[2 * i], &other = sums[2 * i + 1];
    pairs[i] = MIRRORGAN_SHUFFLE(one, other, 0, 4, 1, 5) + MIRRORGAN_SHUFFLE(one, other, 2, 6, 3, 7);
  }
  store<4>(MIRRORGAN_SHUFFLE(pairs[0], pairs[1], 0, 1, 4, 5) + MIRRORGAN_SHUFFLE(pairs[0], pairs[1], 2, 3, 6, 7), out);
}

// Convolves kPixelsAtOnce pixels of a row, from `column` on. The outputs are `pitch` apart.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void multiply_pixels(
    const Arguments& a, const float* taps, const scalar_t* map, int64_t row, int64_t column, float* out, int64_t pitch) {
  using Float = typename Vector<Lanes>::Float;
  constexpr int kInputs = kPixelsAtOnce + kSide - 1;
  Float sums[kOutputs][kPixelsAtOnce] = {};
  for (int64_t y = row - 1; y <= row + 1; ++y) {
    if (y < 0 || y >= a.height) {
      taps += taps_size(a) / kSide;
      continue;
    }
    const scalar_t* pixel = map + (y * a.width + column - 1) * a.channels;
    for (int64_t c = 0; c < a.channels; c += Lanes) {
      Float inputs[kInputs];
#pragma GCC unroll 6
      for (int i = 0; i < kInputs; ++i) {
        inputs[i] = Float{};
        if (column - 1 + i >= 0 && column - 1 + i < a.width) {
          load<Lanes>(pixel + i * a.channels + c, inputs[i]);
        }
      }
#pragma GCC unroll 3
      for (int x = 0; x < kSide; ++x) {
#pragma GCC unroll 3
        for (int o = 0; o < kOutputs; ++o, taps += Lanes) {
          Float tap;
          load<Lanes>(taps, tap);
#pragma GCC unroll 4
          for (int p = 0; p < kPixelsAtOnce; ++p) {
            sums[o][p] += inputs[p + x] * tap;
          }
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int o = 0; o < kOutputs; ++o) {
    sum_lanes<Lanes>(sums[o], out + o * pitch);
  }
}

int64_t row_size(const Arguments& a) {
  return divide_up(a.width, kHalf) * kHalf;
}

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void write_rows(
    const Arguments& a, const float* taps, const void* map, uint8_t* image, int64_t first, int64_t end, float* sums) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t pitch = row_size(a);
  for (int64_t row = first; row < end; ++row) {
    for (int64_t column = 0; column < a.width; column += kPixelsAtOnce) {
      multiply_pixels<scalar_t, Lanes>(a, taps, static_cast<const scalar_t*>(map), row, column, sums + column, pitch);
    }
    for (int64_t o = 0; o < a.out_channels; ++o) {
      for (int64_t column = 0; column < a.width; column += Lanes) {
        Float level;
        load<Lanes>(sums + o * pitch + column, level);
        level += a.bias[o];
        gray_level<Lanes>(level);
        store<Lanes>(level, sums + o * pitch + column);
      }
    }
    uint8_t* pixel = image + row * a.width * a.out_channels;
    for (int64_t column = 0; column < a.width; ++column) {
      for (int64_t o = 0; o < a.out_channels; ++o) {
        *pixel++ = to_byte(sums[o * pitch + column]);
      }
    }
  }
}

struct Form {
  void (*order_taps)(const Arguments&, float*);
  void (*write_rows)(const Arguments&, const float*, const void*, uint8_t*, int64_t, int64_t, float*);
};

#define MIRRORGAN_FORM(name, scalar_t, lanes, target)                                                              \
  target void order_taps_##name(const Arguments& a, float* taps) {                                                 \
    order_taps<scalar_t, lanes>(a, taps);                                                                          \
  }                                                                                                                \
  target void write_rows_##name(const Arguments& a, const float* taps, const void* map, uint8_t* image,            \
                                int64_t first, int64_t end, float* sums) {                                         \
    write_rows<scalar_t, lanes>(a, taps, map, image, first, end, sums);                                            \
  }                                                                                                                \
  constexpr Form name{order_taps_##name, write_rows_##name};

#define MIRRORGAN_FORMS(set, lanes, target) \
  MIRRORGAN_FORM(float_##set, float, lanes, target) \
  MIRRORGAN_FORM(bfloat16_##set, bfloat16_bits, lanes, target)

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_FORMS)

template <typename scalar_t>
Form chosen_form() {
  return std::is_same_v<scalar_t, float> ? MIRRORGAN_CHOSEN(float) : MIRRORGAN_CHOSEN(bfloat16);
}

}  // namespace

bool takes_vectors(const Arguments& a) {
  return a.products == 0 && a.taps == kSide * kSide && a.out_channels <= kOutputs && a.channels % kHalf == 0;
}

template <typename scalar_t>
const float* prepare_vectors(const Arguments& a) {
  static thread_local Workspace<float> workspace;
  float* taps = workspace.at_least(taps_size(a));
  chosen_form<scalar_t>().order_taps(a, taps);
  return taps;
}

template <typename scalar_t>
void write_rows_vectors(
    const Arguments& a, const float* taps, const scalar_t* x, uint8_t* out, int64_t first, int64_t end) {
  static thread_local Workspace<float> workspace;
  chosen_form<scalar_t>().write_rows(a, taps, x, out, first, end, workspace.at_least(kOutputs * row_size(a)));
}

template const float* prepare_vectors<float>(const Arguments&);
template const float* prepare_vectors<bfloat16_bits>(const Arguments&);
template void write_rows_vectors<float>(const Arguments&, const float*, const float*, uint8_t*, int64_t, int64_t);
template void write_rows_vectors<bfloat16_bits>(
    const Arguments&, const float*, const bfloat16_bits*, uint8_t*, int64_t, int64_t);

}  // namespace mirrorgan::image_head
