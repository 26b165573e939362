// A 3x3 or 1x1 convolution with everything that follows it: the engine of mirrorgan::conv_glu, conv_add and image_head.
//
// A strip of rows is copied once into a window with zeros around it, in the type the products are computed in; from there
// any 16 pixels and 32 channels of any tap are rows at one distance, which is what a matrix tile loads. The sums of 32
// pixels by 32 columns go through a small block of float32 to the epilogue, which writes the result: neither the padded
// input, nor the convolution's own result, nor an upsampled map is ever written to memory.
//
// On the map upsampled by two (nearest), a 3x3 convolution is four 2x2 convolutions of the small map, one for each of the
// four pixels that a pixel becomes: `phases` is 4, and the taps are 4 instead of 9. Unless AMX multiplies, and even then where
// many channels are upsampled, both are computed with fewer products (winograd.cpp).

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

namespace mirrorgan::convolution {

constexpr int64_t kGroup = 16;    // pixels in a row of the window: the rows of a matrix tile
constexpr int64_t kPixels = 32;   // of a block: two groups
constexpr int64_t kHalf = 16;     // columns of a half: values or gates, or the first or last channels
constexpr int64_t kColumns = 32;  // of a block: two halves
constexpr int64_t kDepth = 32;    // channels of a step: a row of a matrix tile in bfloat16
constexpr int64_t kTile = kDepth * kHalf;
// So few results of plain taps image_head computes faster than in Winograd's form.
constexpr int64_t kImageChannels = 3;
// Weights of all blocks that are too many to stay in a second-level cache come from further away for every part of the work:
// then rather fewer parts.
constexpr int64_t kManyWeightsBytes = 1024 * 1024;

inline int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

enum class Epilogue {
  glu,    // (values + bias) * sigmoid(gates + bias)
  add,    // sums + bias + residual, if there is one
  image,  // tanh(sums + bias) in [-1, 1] as a grey level
};

struct Arguments {
  const void* x;         // (N, H, W, C)
  const void* residual;  // (N, H, W, out_channels), for Epilogue::add, or null
  const void* weight;    // (phases or products, blocks, steps, 2, kTile), as mirrorgan_fast/ops/packing.py packs it
  const float* bias;     // (2 * out_channels) with a GLU, else (out_channels)
  void* out;             // (N, H, W, out_channels), or (N, 2H, 2W, out_channels) of four phases
  int64_t samples, height, width, channels, out_channels;
  int64_t phases, blocks, steps;
  int64_t taps;       // of a phase: 9, 4 (of the four phases) or 1
  int64_t products;   // of a tile in Winograd's form: 36 (in float32), 16 (in bfloat16) or 9 (of four phases); else 0
  int64_t out_pitch;  // pixels from a row of `out` (and `residual`) to the next

  // The size of a result is that many times its map's.
  int64_t scale() const {
    return phases == 4 ? 2 : 1;
  }

  // Pixels around a pixel that its taps reach.
  int64_t halo() const {
    return taps == 1 ? 0 : 1;
  }
};

// Sixteen neighbouring pixels of a strip, from one on; what is left of a strip may be fewer.
struct Group {
  int64_t sample, row, column, count;
  int64_t offset;  // in pixels, from the strip's window
};

// Where in memory the pixels of a group go, one after the other.
struct Cursor {
  int64_t at;      // index of the pixel's first channel
  int64_t column;  // of the map that was convolved
  int64_t step, jump, width;

  MIRRORGAN_INLINE void advance() {
    at += step;
    if (++column == width) {
      column = 0;
      at += jump;
    }
  }
};

// The window of a strip: its pixel (row, column) as the tap (dy, dx) sees it is
// taps[dx + 1] + (offset + (dy + halo) * pitch) * channels.
template <typename compute_t>
struct Window {
  const compute_t* taps[3];
  int64_t pitch;     // pixels from a row to the next
  int64_t halo;      // rows of zeros or neighbours on top
  int64_t channels;  // C, filled up to whole steps

  MIRRORGAN_INLINE const compute_t* at(int64_t offset, int64_t dy, int64_t dx) const {
    return taps[dx + 1] + (offset + (dy + halo) * pitch) * channels;
  }
};

struct Phase {
  int64_t index;          // of the four; 0 without upsampling
  int64_t taps;
  int64_t dy[9], dx[9];
};

inline Phase phase_of(const Arguments& a, int64_t index) {
  Phase phase{index, a.taps, {}, {}};
  const int64_t side = a.taps == 9 ? 3 : a.taps == 4 ? 2 : 1;
  for (int64_t tap = 0; tap < phase.taps; ++tap) {
    phase.dy[tap] = tap / side - a.halo() + (a.phases == 4 ? index / 2 : 0);
    phase.dx[tap] = tap % side - a.halo() + (a.phases == 4 ? index % 2 : 0);
  }
  return phase;
}

inline Cursor cursor_of(const Arguments& a, const Group& group, const Phase& phase) {
  const int64_t scale = a.scale();
  const int64_t out_row = (group.sample * a.height + group.row) * scale + phase.index / 2;
  const int64_t out_column = group.column * scale + phase.index % 2;
  return {(out_row * a.out_pitch + out_column) * a.out_channels, group.column, scale * a.out_channels,
          scale * (a.out_pitch - a.width) * a.out_channels, a.width};
}

// The biases of a block, zero past the last channel.
inline void read_bias(const Arguments& a, Epilogue epilogue, int64_t block, float* bias) {
  for (int64_t i = 0; i < kColumns; ++i) {
    const bool gate = epilogue == Epilogue::glu && i >= kHalf;
    const int64_t channel = epilogue == Epilogue::glu ? block * kHalf + i % kHalf : block * kColumns + i;
    bias[i] = channel < a.out_channels ? a.bias[channel + (gate ? a.out_channels : 0)] : 0.0f;
  }
}

#if defined(MIRRORGAN_X86)
constexpr int kPairRows = 8;

// With the products of bfloat16 of AVX-512: the sums of kPairRows pixels and one or two halves of columns, over all taps
// and channels, into the block.
void multiply_pairs(
    const Window<bfloat16_bits>& window,
    int64_t offset,
    const Phase& phase,
    const bfloat16_bits* weight,
    int halves,
    float* sums);

// With the AMX unit's tiles: convolve a strip whose window is filled, the blocks of columns [first_block, end_block).
void convolve_strip_amx(
    const Arguments& a,
    Epilogue epilogue,
    const Window<bfloat16_bits>& window,
    const std::vector<Group>& groups,
    int64_t first_block,
    int64_t end_block);
// Products of the first `rows` of 32 rows with matrices of 32 columns: of each product the matrix on the left is
// `left_distance` after that of the one before, with `channels` in a row, and the panel `right_distance`. The sums of a
// product are a block (2, kPixels, kHalf), and so those of the next.
void multiply_products_amx(
    const bfloat16_bits* left,
    int64_t left_distance,
    int64_t channels,
    int64_t rows,
    int64_t products,
    const bfloat16_bits* right,
    int64_t right_distance,
    float* sums);
#endif

// Convolve; scalar_t, of x and residual, is float or bfloat16_bits.
template <typename scalar_t>
void convolve(const Arguments& a, Epilogue epilogue);
// With `products`.
template <typename scalar_t>
void convolve_winograd(const Arguments& a, Epilogue epilogue);

}  // namespace mirrorgan::convolution
