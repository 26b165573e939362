// A 3x3 or 1x1 convolution with an epilogue: the engine of mirrorgan::conv_glu, conv_add, conv_relu and
// image_head.
//
// A strip of rows is copied once into a window with zeros around it, in the data type of the products. In the window,
// 16 pixels and 32 channels of any tap are rows at a constant distance, which a matrix tile can load. The sums of 32
// pixels and 32 columns go through a small block of float32 to the epilogue, which writes the result. Neither the
// padded input, nor the result of the convolution alone, nor an upsampled map is written to memory.
//
// On the map upsampled by two (nearest neighbor), a 3x3 convolution is four 2x2 convolutions of the small map, one for each
// of the four pixels that a pixel becomes: `phases` is 4, with 4 taps each instead of 9. Without AMX, and with AMX for
// upsampling many channels, convolutions use Winograd's form, which has fewer products (winograd.cpp).

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

namespace mirrorgan::convolution {

constexpr int64_t kGroup = 16;    // neighboring pixels of a group: the rows of a matrix tile
constexpr int64_t kPixels = 32;   // pixels of a block: two groups
constexpr int64_t kHalf = 16;     // columns of a half: values or gates, or the first or last channels
constexpr int64_t kColumns = 32;  // columns of a block: two halves
constexpr int64_t kDepth = 32;    // channels of a step: a row of a matrix tile in bfloat16
constexpr int64_t kTile = kDepth * kHalf;
// Up to this many channels of the result, image_head is faster with plain taps than in Winograd's form.
constexpr int64_t kImageChannels = 3;
// If the weights of all blocks are larger than this, they do not stay in the second-level cache, and every task loads them
// again. Then the work is cut into fewer tasks.
constexpr int64_t kManyWeightsBytes = 1024 * 1024;

inline int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

enum class Epilogue {
  glu,    // (values + bias) * sigmoid(gates + bias)
  add,    // sums + bias + residual, if there is one; not below zero with `relu`
  image,  // tanh(sums + bias) in [-1, 1] as a gray level
};

struct Arguments {
  const void* x;         // (N, H, W, C)
  const void* residual;  // (N, H, W, out_channels), for Epilogue::add, or null
  const void* weight;    // (phases or products, blocks, steps, 2, kTile), as mirrorgan_fast/ops/packing.py packs it
  const float* bias;     // (2 * out_channels) with a GLU, else (out_channels)
  void* out;             // (N, H, W, out_channels), or (N, 2H, 2W, out_channels) with four phases
  int64_t samples, height, width, channels, out_channels;
  int64_t phases, blocks, steps;
  int64_t taps;       // taps per phase: 9, 4 (with four phases) or 1
  int64_t products;   // products per tile in Winograd's form: 36 (float32), 16 (bfloat16) or 9 (four phases); otherwise 0
  int64_t out_pitch;  // pixels from a row of `out` (and `residual`) to the next
  bool relu;          // whether results below zero become zero, for Epilogue::add

  // How many times larger than the map the result is.
  int64_t scale() const {
    return phases == 4 ? 2 : 1;
  }

  // How many pixels away from a pixel its taps reach.
  int64_t halo() const {
    return taps == 1 ? 0 : 1;
  }
};

// Sixteen neighboring pixels of a strip; the last group of a strip may have fewer.
struct Group {
  int64_t sample, row, column, count;  // the first pixel, and the number of pixels
  int64_t offset;                      // in pixels, from the start of the strip's window
};

// Goes over the pixels of a group and gives their places in the result.
struct Cursor {
  int64_t at;      // index of the first channel of the current pixel
  int64_t column;  // column of the map that is convolved
  int64_t step, jump, width;

  MIRRORGAN_INLINE void advance() {
    at += step;
    if (++column == width) {
      column = 0;
      at += jump;
    }
  }
};

// The window of a strip. The pixel that the tap (dy, dx) reads for the pixel at `offset` is at
// taps[dx + 1] + (offset + (dy + halo) * pitch) * channels.
template <typename compute_t>
struct Window {
  const compute_t* taps[3];
  int64_t pitch;     // pixels from a row to the next
  int64_t halo;      // rows of zeros or neighbors above the strip
  int64_t channels;  // C, padded to whole steps

  MIRRORGAN_INLINE const compute_t* at(int64_t offset, int64_t dy, int64_t dx) const {
    return taps[dx + 1] + (offset + (dy + halo) * pitch) * channels;
  }
};

struct Phase {
  int64_t index;  // 0 to 3; 0 without upsampling
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

// Reads the biases of a block, with zeros after the last channel.
inline void read_bias(const Arguments& a, Epilogue epilogue, int64_t block, float* bias) {
  for (int64_t i = 0; i < kColumns; ++i) {
    const bool gate = epilogue == Epilogue::glu && i >= kHalf;
    const int64_t channel = epilogue == Epilogue::glu ? block * kHalf + i % kHalf : block * kColumns + i;
    bias[i] = channel < a.out_channels ? a.bias[channel + (gate ? a.out_channels : 0)] : 0.0f;
  }
}

#if defined(MIRRORGAN_X86)
constexpr int kPairRows = 8;

// Writes the sums of kPairRows pixels and one or two halves of columns, over all taps and channels, into the block. It uses
// the bfloat16 products of AVX-512.
void multiply_pairs(
    const Window<bfloat16_bits>& window,
    int64_t offset,
    const Phase& phase,
    const bfloat16_bits* weight,
    int halves,
    float* sums);

// Convolves a strip whose window is filled, for the blocks [first_block, end_block) of columns. It uses AMX.
void convolve_strip_amx(
    const Arguments& a,
    Epilogue epilogue,
    const Window<bfloat16_bits>& window,
    const std::vector<Group>& groups,
    int64_t first_block,
    int64_t end_block);

// Multiplies the first `rows` of 32 rows with matrices of 32 columns, for a number of products. From one product to the
// next the left matrix, with `channels` in a row, is `left_distance` further, and the right panel `right_distance`
// further. The sums of each product are a block (2, kPixels, kHalf), one after the other. It uses AMX.
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

// Convolves. scalar_t, the type of x and residual, is float or bfloat16_bits.
template <typename scalar_t>
void convolve(const Arguments& a, Epilogue epilogue);

// Convolves in Winograd's form, for weights with `products`.
template <typename scalar_t>
void convolve_winograd(const Arguments& a, Epilogue epilogue);

}  // namespace mirrorgan::convolution
