// The form of mirrorgan::image_head with AMX.
//
// An image has three channels, but a right tile has sixteen columns. So the three taps of a row of the kernel are in
// the same tile, with four columns each. For 16 pixels there is one product for each row of the kernel and 32 channels,
// a third of the products of other convolutions. Afterwards the sums of each pixel and its two neighbors are added, for
// four pixels together.
//
// Strips of 16 columns are processed from top to bottom. Each row that is read contributes to three rows of sums, which are
// in three tiles.

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

constexpr int64_t kLanes = 4;   // columns of a tap: the channels of the image, padded
constexpr int64_t kSums = 16;   // sums of a pixel: (3 taps, kLanes), padded
constexpr int64_t kQuad = 4;    // pixels that are finished together
constexpr int64_t kStrip = kRows;
constexpr int64_t kPlace = (1 + kStrip + 1) * kSums;  // a row of sums of a strip, with one pixel before and one after it
constexpr int64_t kPitch = 2 * kPlace;                // two strips, which alternate
constexpr int64_t kRowsAtOnce = 8;

// Reorders packed weights (steps, 2, kTile), with one tap after the other, to (3 rows of the kernel, channels / kDepth,
// kTile).
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
          target[pair * kDepth + tap % 3 * 2 * kLanes + i] = source[pair * kDepth + i];
        }
      }
    }
  }
}

MIRRORGAN_BEGIN_AMX

// Adds the sums of a pixel and its two neighbors.
MIRRORGAN_INLINE __m128 add_taps(const float* sums) {
  const __m128 sides = _mm_add_ps(_mm_load_ps(sums - kSums), _mm_load_ps(sums + kSums + 2 * kLanes));
  return _mm_add_ps(sides, _mm_load_ps(sums + kLanes));
}

// Computes and writes the result of four pixels from their sums.
struct Finish {
  __m512 bias;
  __m128i order;  // moves the bytes of four pixels, with four lanes each, next to each other
  int64_t bytes;

  MIRRORGAN_INLINE explicit Finish(const Arguments& a) : bytes(kQuad * a.out_channels) {
    alignas(64) float biases[kQuad * kLanes] = {};
    alignas(16) int8_t lanes[kQuad * kLanes] = {};
    for (int64_t p = 0; p < kQuad; ++p) {
      for (int64_t c = 0; c < a.out_channels; ++c) {
        biases[p * kLanes + c] = a.bias[c];
        lanes[p * a.out_channels + c] = static_cast<int8_t>(p * kLanes + c);
      }
    }
    bias = _mm512_load_ps(biases);
    order = _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
  }

  MIRRORGAN_INLINE void operator()(const float* sums, uint8_t* out) const {
    __m512 quad = _mm512_castps128_ps512(add_taps(sums));
    quad = _mm512_insertf32x4(quad, add_taps(sums + kSums), 1);
    quad = _mm512_insertf32x4(quad, add_taps(sums + 2 * kSums), 2);
    quad = _mm512_insertf32x4(quad, add_taps(sums + 3 * kSums), 3);
    const __m128i levels = amx::gray_levels(_mm512_add_ps(quad, bias));
    _mm_mask_storeu_epi8(out, amx::first_of(bytes), _mm_shuffle_epi8(levels, order));
  }
};

// Multiplies an input row. It is the bottom row of the kernel for the row of sums in the tile `above`, the middle row
// for `own`, and the top row for `below`. The tile of `below` still has the finished sums of the previous row's
// `above`. They are stored only here, as the unit would wait for sums that were just multiplied. This is a macro
// because the intrinsics need constant tile numbers.
#define MIRRORGAN_MULTIPLY(above, own, below)                          \
  for (int64_t step = 0; step < steps && inside; ++step) {             \
    _tile_loadd(4, left + step * kDepth, stride);                      \
    _tile_loadd(5, panel + (2 * steps + step) * kTile, kTileRowBytes); \
    _tile_dpbf16ps(above, 4, 5);                                       \
    _tile_loadd(6, panel + (steps + step) * kTile, kTileRowBytes);     \
    _tile_dpbf16ps(own, 4, 6);                                         \
    if (step == 0) {                                                   \
      MIRRORGAN_BEGIN(below)                                           \
    }                                                                  \
    _tile_loadd(7, panel + step * kTile, kTileRowBytes);               \
    _tile_dpbf16ps(below, 4, 7);                                       \
  }                                                                    \
  if (!inside) {                                                       \
    MIRRORGAN_BEGIN(below)                                             \
  }

#define MIRRORGAN_BEGIN(tile)                            \
  if (finished >= first) {                               \
    _tile_stored(tile, own_sums + kSums, kTileRowBytes);   \
  }                                                      \
  _tile_zero(tile);

// Writes at most kRowsAtOnce rows.
void write_rows(
    const Arguments& a,
    const bfloat16_bits* panel,
    const bfloat16_bits* x,
    uint8_t* out,
    int64_t first,
    int64_t end,
    float* sums) {
  const amx::Tiles tiles;
  const Finish finish(a);
  const int64_t stride = a.channels * static_cast<int64_t>(sizeof(bfloat16_bits)), steps = a.channels / kDepth;
  const int64_t strips = a.width / kStrip;
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t strip = 0; strip <= strips; ++strip) {
    float *own = sums + strip % 2 * kPlace, *last = sums + (strip + 1) % 2 * kPlace;
    for (int64_t row = first - 1; row <= end + 1; ++row) {
      const int64_t finished = row - 2;
      float *own_sums = own + (finished - first) * kPitch, *last_sums = last + (finished - first) * kPitch;
      if (strip < strips) {
        const bool inside = row >= 0 && row < a.height && row <= end;
        const bfloat16_bits* left = x + (row * a.width + strip * kStrip) * a.channels;
        switch ((row + 1) % 3) {
          case 0:
            MIRRORGAN_MULTIPLY(0, 1, 2)
            break;
          case 1:
            MIRRORGAN_MULTIPLY(1, 2, 0)
            break;
          default:
            MIRRORGAN_MULTIPLY(2, 0, 1)
        }
      }
      if (finished < first) {
        continue;
      }
      if (strip > 0) {
        _mm512_store_ps(last_sums + (1 + kStrip) * kSums, strip < strips ? _mm512_load_ps(own_sums + kSums) : zero);
        for (int64_t p = 0; p < kStrip; p += kQuad) {
          const int64_t pixel = (strip - 1) * kStrip + p;
          finish(last_sums + (1 + p) * kSums, out + (finished * a.width + pixel) * a.out_channels);
        }
      } else {
        _mm512_store_ps(own_sums, zero);
      }
      _mm512_store_ps(last_sums, _mm512_load_ps(own_sums + kStrip * kSums));  // the pixel before the next strip's first one
    }
  }
}

#undef MIRRORGAN_MULTIPLY
#undef MIRRORGAN_BEGIN

MIRRORGAN_END_TARGET

}  // namespace

bool takes_amx(const Arguments& a) {
  return a.products == 0 && a.taps == 9 && a.out_channels <= kLanes && a.channels % kDepth == 0 && a.width % kRows == 0;
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
  float* sums = workspace.at_least(kRowsAtOnce * kPitch);
  for (int64_t row = first; row < end; row += kRowsAtOnce) {
    write_rows(a, panel, x, out, row, row + kRowsAtOnce < end ? row + kRowsAtOnce : end, sums);
  }
}

}  // namespace mirrorgan::image_head

#endif
