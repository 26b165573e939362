// Blocks of a map's pixels as float32 tiles (rows, kBlock), on which the kernels of GLAM's attention compute. Each row is a
// channel or a word. The lanes of a vector are pixels, so no sum crosses lanes. A pixel's result depends only on its own
// column: not on other samples, and not on how the blocks are divided among threads.

#pragma once

#include <algorithm>
#include <cstdint>

#include "instruction_sets.h"
#include "vectors.h"

namespace mirrorgan {

constexpr int64_t kBlock = 64;          // pixels of a tile: 8 KiB for 32 channels
constexpr int64_t kBlocksPerTask = 16;  // 1,024 pixels
// This many products are added one after the other; then a new sum begins. Longer sums would have larger rounding errors.
constexpr int64_t kSummedAtOnce = 128;

// Multiplies Rows rows. The result replaces `out`, or is added to it.
template <int Rows, int Lanes>
MIRRORGAN_INLINE void multiply_rows(
    float* out, const float* left, int64_t row_stride, int64_t inner_stride, const float* right, int64_t inner, bool adds) {
  using Float = typename Vector<Lanes>::Float;
  // Two vectors per row: with Rows = 4 these are eight sums, enough to cover the latency of multiply-adds, and few
  // enough to stay in 16 registers.
  for (int64_t pixel = 0; pixel < kBlock; pixel += 2 * Lanes) {
    Float sums[Rows][2] = {};
    for (int64_t k = 0; k < inner; ++k) {
      const float* row = right + k * kBlock + pixel;
      const Float first = *reinterpret_cast<const Float*>(row);
      const Float second = *reinterpret_cast<const Float*>(row + Lanes);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const float factor = left[r * row_stride + k * inner_stride];
        sums[r][0] += factor * first;
        sums[r][1] += factor * second;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      Float* row = reinterpret_cast<Float*>(out + r * kBlock + pixel);
      row[0] = adds ? row[0] + sums[r][0] : sums[r][0];
      row[1] = adds ? row[1] + sums[r][1] : sums[r][1];
    }
  }
}

// out (rows, kBlock) = left (rows, inner) @ right (inner, kBlock).
template <int Lanes>
MIRRORGAN_INLINE void multiply(
    float* out,
    const float* left,
    int64_t row_stride,
    int64_t inner_stride,
    const float* right,
    int64_t rows,
    int64_t inner) {
  for (int64_t begin = 0; begin < inner || begin == 0; begin += kSummedAtOnce, left += kSummedAtOnce * inner_stride) {
    const float* rows_of_right = right + begin * kBlock;
    const int64_t summed = std::min(inner - begin, kSummedAtOnce);
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
      multiply_rows<4, Lanes>(
          out + row * kBlock, left + row * row_stride, row_stride, inner_stride, rows_of_right, summed, begin > 0);
    }
    for (; row < rows; ++row) {
      multiply_rows<1, Lanes>(
          out + row * kBlock, left + row * row_stride, row_stride, inner_stride, rows_of_right, summed, begin > 0);
    }
  }
}

// Adds the products of Rows rows and of Vectors vectors of columns.
template <int Rows, int Vectors, int Lanes>
MIRRORGAN_INLINE void accumulate_rows(float* out, const float* left, const float* right, int64_t columns) {
  using Float = typename Vector<Lanes>::Float;
  Float sums[Rows][Vectors] = {};
  for (int64_t pixel = 0; pixel < kBlock; ++pixel) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Float factors = *reinterpret_cast<const Float*>(right + pixel * columns + v * Lanes);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        sums[r][v] += left[r * kBlock + pixel] * factors;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      *reinterpret_cast<Float*>(out + r * columns + v * Lanes) += sums[r][v];
    }
  }
}

template <int Vectors, int Lanes>
MIRRORGAN_INLINE void accumulate_columns(
    float* out, const float* left, const float* right, int64_t rows, int64_t columns, int64_t& column) {
  for (; column + Vectors * Lanes <= columns; column += Vectors * Lanes) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
      accumulate_rows<4, Vectors, Lanes>(out + row * columns + column, left + row * kBlock, right + column, columns);
    }
    for (; row < rows; ++row) {
      accumulate_rows<1, Vectors, Lanes>(out + row * columns + column, left + row * kBlock, right + column, columns);
    }
  }
}

// out (rows, columns) += left (rows, kBlock) @ right (kBlock, columns): a sum over the pixels of a block.
template <int Lanes>
MIRRORGAN_INLINE void accumulate(float* out, const float* left, const float* right, int64_t rows, int64_t columns) {
  int64_t column = 0;
  accumulate_columns<2, Lanes>(out, left, right, rows, columns, column);
  accumulate_columns<1, Lanes>(out, left, right, rows, columns, column);
  accumulate_columns<1, 1>(out, left, right, rows, columns, column);
}

// out (kBlock, rows) = the transpose of tile (rows, kBlock).
MIRRORGAN_INLINE void transpose_tile(float* out, const float* tile, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < kBlock; ++p) {
      out[p * rows + r] = tile[r * kBlock + p];
    }
  }
}

// Adds to each row's sum the products of two tiles (rows, kBlock).
template <int Lanes>
MIRRORGAN_INLINE void accumulate_dots(float* sums, const float* left, const float* right, int64_t rows) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t r = 0; r < rows; ++r) {
    Float total = {};
    for (int64_t p = r * kBlock; p < (r + 1) * kBlock; p += Lanes) {
      total += *reinterpret_cast<const Float*>(left + p) * *reinterpret_cast<const Float*>(right + p);
    }
    float sum = 0.0f;
    for (int lane = 0; lane < Lanes; ++lane) {
      sum += total[lane];
    }
    sums[r] += sum;
  }
}

// Softmax over the rows of (rows, kBlock), in place.
template <int Lanes>
MIRRORGAN_INLINE void softmax(float* values, int64_t rows) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t pixel = 0; pixel < kBlock; pixel += Lanes) {
    float* column = values + pixel;
    Float largest = *reinterpret_cast<Float*>(column);
    for (int64_t row = 1; row < rows; ++row) {
      const Float value = *reinterpret_cast<Float*>(column + row * kBlock);
      largest = value > largest ? value : largest;
    }
    Float sum = {};
    for (int64_t row = 0; row < rows; ++row) {
      Float& value = *reinterpret_cast<Float*>(column + row * kBlock);
      Float exponential = value - largest;
      exp_of_negative<Lanes>(exponential);
      value = exponential;
      sum += exponential;
    }
    const Float scale = 1.0f / sum;
    for (int64_t row = 0; row < rows; ++row) {
      *reinterpret_cast<Float*>(column + row * kBlock) *= scale;
    }
  }
}

// Replaces the gradient of a softmax's results (rows, kBlock) by that of its inputs.
template <int Lanes>
MIRRORGAN_INLINE void softmax_backward(float* gradients, const float* shares, int64_t rows) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t pixel = 0; pixel < kBlock; pixel += Lanes) {
    Float mean = {};
    for (int64_t p = pixel; p < rows * kBlock; p += kBlock) {
      mean += *reinterpret_cast<const Float*>(gradients + p) * *reinterpret_cast<const Float*>(shares + p);
    }
    for (int64_t p = pixel; p < rows * kBlock; p += kBlock) {
      Float& gradient = *reinterpret_cast<Float*>(gradients + p);
      gradient = *reinterpret_cast<const Float*>(shares + p) * (gradient - mean);
    }
  }
}

// The order of a map in memory: (C, H*W), or (H*W, C) if channels_last.
struct MapLayout {
  int64_t channels, pixels;
  bool channels_last;
};

// tile (rows, kBlock) = the channels [channel, channel + rows) of pixels [first, first + valid) of a map; columns past them
// are zero.
template <typename scalar_t>
MIRRORGAN_INLINE void read_tile(
    float* tile, int64_t rows, const scalar_t* map, const MapLayout& layout, int64_t channel, int64_t first, int64_t valid) {
  if (valid < kBlock) {
    __builtin_memset(tile, 0, static_cast<size_t>(rows * kBlock) * sizeof(float));
  }
  const int64_t step = layout.channels_last ? layout.channels : 1;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t c = channel + r;
    const scalar_t* source = layout.channels_last ? map + first * layout.channels + c : map + c * layout.pixels + first;
    float* row = tile + r * kBlock;
    if (step == 1) {
      for (int64_t p = 0; p < valid; ++p) {
        row[p] = to_float(source[p]);
      }
    } else {
      for (int64_t p = 0; p < valid; ++p) {
        row[p] = to_float(source[p * step]);
      }
    }
  }
}

// The same for all channels.
template <typename scalar_t>
MIRRORGAN_INLINE void read_tile(
    float* tile, const scalar_t* map, const MapLayout& layout, int64_t first, int64_t valid) {
  read_tile(tile, layout.channels, map, layout, 0, first, valid);
}

// Writes the valid columns of a tile (rows, kBlock) to the channels [channel, channel + rows) of a map.
template <typename scalar_t>
MIRRORGAN_INLINE void write_tile(
    const float* tile, int64_t rows, scalar_t* map, const MapLayout& layout, int64_t channel, int64_t first, int64_t valid) {
  if (!layout.channels_last) {
    for (int64_t r = 0; r < rows; ++r) {
      scalar_t* target = map + (channel + r) * layout.pixels + first;
      for (int64_t p = 0; p < valid; ++p) {
        store(tile[r * kBlock + p], target + p);
      }
    }
    return;
  }
  // Each row is converted first, which is vectorized, and only then transposed.
  scalar_t row[kBlock];
  map += first * layout.channels + channel;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < kBlock; ++p) {
      store(tile[r * kBlock + p], row + p);
    }
    for (int64_t p = 0; p < valid; ++p) {
      map[p * layout.channels + r] = row[p];
    }
  }
}

}  // namespace mirrorgan
