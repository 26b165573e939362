// The form of mirrorgan::image_head that multiplies with AMX.
//
// An image has three channels, and a right tile sixteen columns: there the three taps of a row of the kernel stand side by
// side, four columns for each. So 16 pixels take a product a row of the kernel and 32 channels, a third of what a convolution
// takes; the sums of a pixel and its two neighbours are added afterwards, those of four pixels at once.
//
// Strips of 16 columns are multiplied downwards: a row that is read takes part in three rows of sums, which are in three
// tiles.

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

constexpr int64_t kLanes = 4;   // of a tap: the channels of the image, filled up
constexpr int64_t kSums = 16;   // of a pixel: (3 taps, kLanes), filled up
constexpr int64_t kQuad = 4;    // pixels that are finished together
constexpr int64_t kStrip = kRows;
constexpr int64_t kPlace = (1 + kStrip + 1) * kSums;  // of a row of a strip's sums, with a pixel before it and one after it
constexpr int64_t kPitch = 2 * kPlace;                // of two strips that take turns
constexpr int64_t kRowsAtOnce = 8;

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
          target[pair * kDepth + tap % 3 * 2 * kLanes + i] = source[pair * kDepth + i];
        }
      }
    }
  }
}

MIRRORGAN_BEGIN_AMX

// What the neighbours' taps and a pixel's own make together.
MIRRORGAN_INLINE __m128 of_pixel(const float* sums) {
  const __m128 sides = _mm_add_ps(_mm_load_ps(sums - kSums), _mm_load_ps(sums + kSums + 2 * kLanes));
  return _mm_add_ps(sides, _mm_load_ps(sums + kLanes));
}

// What four pixels' sums become.
struct Finish {
  __m512 bias;
  __m128i order;  // of the bytes of four pixels, from four lanes a pixel
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
    __m512 quad = _mm512_castps128_ps512(of_pixel(sums));
    quad = _mm512_insertf32x4(quad, of_pixel(sums + kSums), 1);
    quad = _mm512_insertf32x4(quad, of_pixel(sums + 2 * kSums), 2);
    quad = _mm512_insertf32x4(quad, of_pixel(sums + 3 * kSums), 3);
    const __m128i levels = amx::grey_levels(_mm512_add_ps(quad, bias));
    _mm_mask_storeu_epi8(out, amx::first_of(bytes), _mm_shuffle_epi8(levels, order));
  }
};

// Of a row that is read: it is the row above `below`, the middle of `own` and the row below `above`. Before, the tile of
// `below` has the sums of the last row's `above`; they leave it only here, because the unit waits for sums that have just been
// multiplied. (The intrinsics want tiles by their names.)
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
    _tile_stored(tile, of_own + kSums, kTileRowBytes);   \
  }                                                      \
  _tile_zero(tile);

// At most kRowsAtOnce rows.
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
      float *of_own = own + (finished - first) * kPitch, *of_last = last + (finished - first) * kPitch;
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
        _mm512_store_ps(of_last + (1 + kStrip) * kSums, strip < strips ? _mm512_load_ps(of_own + kSums) : zero);
        for (int64_t p = 0; p < kStrip; p += kQuad) {
          const int64_t pixel = (strip - 1) * kStrip + p;
          finish(of_last + (1 + p) * kSums, out + (finished * a.width + pixel) * a.out_channels);
        }
      } else {
        _mm512_store_ps(of_own, zero);
      }
      _mm512_store_ps(of_last, _mm512_load_ps(of_own + kStrip * kSums));  // where the next strip will be
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
