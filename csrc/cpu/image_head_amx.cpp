// The form of mirrorgan::image_head that multiplies with AMX.
//
// An image has three channels, and a right tile sixteen columns: there the three taps of a row of the kernel stand side by
// side. So 16 pixels take a product a row of the kernel and 32 channels, a third of what a convolution takes; the sums of a
// pixel and its two neighbours are added afterwards. Rows are read where they lie.

#include "image_head.h"

#if defined(MIRRORGAN_X86)

#include "amx.h"
#include "workspace.h"

namespace mirrorgan::image_head {
namespace {

using amx::kDepth;
using amx::kRows;
using amx::kTile;
using amx::kTileRowBytes;
using convolution::Arguments;

constexpr int64_t kSums = 16;        // of a pixel: (3 taps, channels of the image), filled up
constexpr int64_t kGroups = 4;       // of 16 pixels, multiplied together

// Packed weights (steps, 2, kTile), a tap a row of the kernel after the other, to (3, channels / kDepth, kTile).
void put_taps_side_by_side(const Arguments& a, bfloat16_bits* panel) {
  const auto* packed = static_cast<const bfloat16_bits*>(a.weight);
  const int64_t depth_steps = a.channels / kDepth;
  for (int64_t i = 0; i < 3 * depth_steps * kTile; ++i) {
    panel[i] = 0;
  }
  for (int64_t tap = 0; tap < 9; ++tap) {
    for (int64_t step = 0; step < depth_steps; ++step) {
      const bfloat16_bits* source = packed + (tap * depth_steps + step) * 2 * kTile;
      bfloat16_bits* target = panel + (tap / 3 * depth_steps + step) * kTile;
      for (int64_t pair = 0; pair < kDepth / 2; ++pair) {
        for (int64_t i = 0; i < 2 * a.out_channels; ++i) {
          target[pair * kDepth + tap % 3 * 2 * a.out_channels + i] = source[pair * kDepth + i];
        }
      }
    }
  }
}

MIRRORGAN_BEGIN_AMX

// sums (count * 16, kSums) of neighbouring pixels of a row; the rows above and below are null outside the map.
template <int Count>
MIRRORGAN_INLINE void multiply(
    const Arguments& a, const bfloat16_bits* const* rows, int64_t pixel, const bfloat16_bits* panel, float* sums) {
  const int64_t stride = a.channels * static_cast<int64_t>(sizeof(bfloat16_bits)), depth_steps = a.channels / kDepth;
  const int64_t group = kRows * a.channels;
  _tile_zero(0);
  if constexpr (Count == kGroups) {
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t dy = 0; dy < 3; ++dy) {
    if (rows[dy] == nullptr) {
      continue;
    }
    for (int64_t step = 0; step < depth_steps; ++step) {
      const bfloat16_bits* left = rows[dy] + pixel * a.channels + step * kDepth;
      _tile_loadd(6, panel + (dy * depth_steps + step) * kTile, kTileRowBytes);
      _tile_loadd(4, left, stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (Count == kGroups) {
        _tile_loadd(5, left + group, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, left + 2 * group, stride);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, left + 3 * group, stride);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
  }
  _tile_stored(0, sums, kTileRowBytes);
  if constexpr (Count == kGroups) {
    _tile_stored(1, sums + kRows * kSums, kTileRowBytes);
    _tile_stored(2, sums + 2 * kRows * kSums, kTileRowBytes);
    _tile_stored(3, sums + 3 * kRows * kSums, kTileRowBytes);
  }
}

// Grey levels of `pixels` pixels; `sums` is the first's, with the row's neighbours (or zeros) around it.
MIRRORGAN_INLINE void write_pixels(
    const Arguments& a, const float* sums, __m512 bias, int64_t pixels, float* levels, uint8_t* out) {
  const int64_t channels = a.out_channels;
  for (int64_t p = 0; p < pixels; ++p) {
    const float* own = sums + p * kSums;
    // Each tap's sums are moved to lane 0 by where they are loaded from; what is in the other lanes is overwritten.
    const __m512 sides = _mm512_add_ps(_mm512_loadu_ps(own - kSums), _mm512_loadu_ps(own + kSums + 2 * channels));
    const __m512 middle = _mm512_add_ps(_mm512_loadu_ps(own + channels), bias);
    _mm512_storeu_ps(levels + p * channels, _mm512_add_ps(sides, middle));
  }
  for (int64_t i = 0; i < pixels * channels; i += 16) {
    _mm_mask_storeu_epi8(out + i, amx::first_of(pixels * channels - i), amx::grey_levels(_mm512_loadu_ps(levels + i)));
  }
}

// While a piece of a row is multiplied, the piece before it is finished.
void write_rows(
    const Arguments& a,
    const bfloat16_bits* panel,
    const bfloat16_bits* x,
    uint8_t* out,
    int64_t first,
    int64_t end,
    float* sums,
    float* levels) {
  const amx::Tiles tiles;
  const int64_t buffer = (a.width + 3) * kSums;
  alignas(64) float biases[16] = {};
  for (int64_t c = 0; c < a.out_channels; ++c) {
    biases[c] = a.bias[c];
  }
  const __m512 bias = _mm512_load_ps(biases);
  constexpr int64_t kPiece = kGroups * kRows;
  for (int64_t row = first; row <= end; ++row) {
    float* of_row = sums + row % 2 * buffer + kSums;
    const float* of_last = sums + (row + 1) % 2 * buffer + kSums;
    const bfloat16_bits* rows[3];
    for (int64_t dy = 0; dy < 3; ++dy) {
      const int64_t seen = row + dy - 1;
      rows[dy] = seen < 0 || seen >= a.height ? nullptr : x + seen * a.width * a.channels;
    }
    for (int64_t pixel = 0; pixel < a.width; pixel += kPiece) {
      const int64_t pixels = a.width - pixel < kPiece ? a.width - pixel : kPiece;
      if (row < end && pixels == kPiece) {
        multiply<kGroups>(a, rows, pixel, panel, of_row + pixel * kSums);
      } else if (row < end) {
        for (int64_t p = pixel; p < a.width; p += kRows) {
          multiply<1>(a, rows, p, panel, of_row + p * kSums);
        }
      }
      if (row > first) {
        write_pixels(a, of_last + pixel * kSums, bias, pixels, levels,
                     out + ((row - 1) * a.width + pixel) * a.out_channels);
      }
    }
  }
}

MIRRORGAN_END_AMX

}  // namespace

bool takes_amx(const Arguments& a) {
  return a.taps == 9 && a.out_channels * 3 <= kSums && a.channels % kDepth == 0 && a.width % kRows == 0;
}

const bfloat16_bits* prepare_amx(const Arguments& a) {
  static thread_local Workspace<bfloat16_bits> workspace;
  bfloat16_bits* panel = workspace.at_least(3 * a.channels / kDepth * kTile);
  put_taps_side_by_side(a, panel);
  return panel;
}

void write_rows_amx(
    const Arguments& a, const bfloat16_bits* panel, const bfloat16_bits* x, uint8_t* out, int64_t first, int64_t end) {
  static thread_local Workspace<float> workspace;
  const int64_t buffer = (a.width + 3) * kSums;  // a pixel before a row, one after it, and what a load reads beyond
  float* sums = workspace.at_least(2 * buffer + (kGroups * kRows + 1) * kSums);
  for (float* of_row : {sums, sums + buffer}) {
    for (int64_t i = 0; i < kSums; ++i) {
      of_row[i] = of_row[(a.width + 1) * kSums + i] = of_row[(a.width + 2) * kSums + i] = 0.0f;
    }
  }
  write_rows(a, panel, x, out, first, end, sums, sums + 2 * buffer);
}

}  // namespace mirrorgan::image_head

#endif
