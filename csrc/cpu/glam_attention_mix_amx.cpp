// The form of mirrorgan::glam_attention_mix that multiplies with AMX: 32 pixels are the rows of two tiles, so that what the
// second-level cache gives of the weights is used twice.
//
// The features are the left tiles of both scores, straight from the map where they fill tiles, and the first ones of the
// result; its other ones are what the softmaxes make, shares of words and gates side by side.

#include "glam_attention_mix.h"

#if defined(MIRRORGAN_X86)

#include <algorithm>

#include "amx.h"
#include "workspace.h"

namespace mirrorgan::attention_mix {
namespace {

using amx::kDepth;
using amx::kRows;
using amx::kTile;
using amx::kTileRowBytes;

constexpr int64_t kPair = 32;    // columns of two right tiles
constexpr int64_t kPixels = 32;  // rows of two left tiles
// Softmaxes of more columns take so long that the AMX unit goes to sleep, from which it wakes for a third of a microsecond.
constexpr int64_t kManyColumns = 64;

int64_t filled(int64_t count) {
  return (count + kPair - 1) / kPair * kPair;
}

int64_t depth_of(const Panels& p) {
  return p.channels + p.words + p.gates;
}

MIRRORGAN_BEGIN_AMX

typedef uint32_t Pair __attribute__((may_alias));  // two bfloat16, one above the other in a matrix

MIRRORGAN_INLINE Pair pair_of(float above, float below) {
  bfloat16_bits bits[2];
  store(above, &bits[0]);
  store(below, &bits[1]);
  return bits[0] | static_cast<Pair>(bits[1]) << 16;
}

// matrix (rows, columns) into steps [first_step, ...) of a panel (pairs, steps, 2, kTile).
void pack(
    bfloat16_bits* panel,
    int64_t pairs,
    int64_t steps,
    int64_t first_step,
    const float* matrix,
    int64_t row_stride,
    int64_t column_stride,
    int64_t rows,
    int64_t columns) {
  for (int64_t tile = 0; tile < 2 * pairs; ++tile) {
    const int64_t left = columns - tile * 16, valid = left < 0 ? 0 : left < 16 ? left : 16;
    const float* first = matrix + tile * 16 * column_stride;
    for (int64_t row = 0; row < filled(rows); row += 2) {
      bfloat16_bits* of_step = panel + ((tile / 2 * steps + first_step + row / kDepth) * 2 + tile % 2) * kTile;
      Pair* out = reinterpret_cast<Pair*>(of_step) + row % kDepth / 2 * 16;
      const float* above = first + row * row_stride;
      const int64_t inside = row < rows ? valid : 0;
      if (row + 1 < rows) {
        for (int64_t c = 0; c < inside; ++c) {
          out[c] = pair_of(above[c * column_stride], above[c * column_stride + row_stride]);
        }
      } else {
        for (int64_t c = 0; c < inside; ++c) {
          out[c] = pair_of(above[c * column_stride], 0.0f);
        }
      }
      for (int64_t c = inside; c < 16; ++c) {
        out[c] = 0;
      }
    }
  }
}

// What rounding to bfloat16 leaves of `count` numbers.
void round_off(const float* numbers, float* rest, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    bfloat16_bits rounded;
    store(numbers[i], &rounded);
    rest[i] = numbers[i] - to_float(rounded);
  }
}

// Rows of left tiles; the second tile's are those after the first one's.
struct Left {
  const bfloat16_bits* rows;
  int64_t columns;  // from a row to the next
  int64_t steps;
};

// Add left @ panel to the sums, of 32 rows in tiles 0 to 3 or (both = false) of 16 rows in 0 and 1. The next step of the
// panel is returned.
template <bool both>
MIRRORGAN_INLINE const bfloat16_bits* add_products(const Left& left, const bfloat16_bits* panel) {
  const int64_t stride = left.columns * static_cast<int64_t>(sizeof(bfloat16_bits));
  const bfloat16_bits *upper = left.rows, *lower = upper + kRows * left.columns;
  for (int64_t step = 0; step < left.steps; ++step, panel += 2 * kTile) {
    _tile_loadd(4, upper + step * kDepth, stride);
    _tile_loadd(6, panel, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + kTile, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (both) {
      _tile_loadd(5, lower + step * kDepth, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  return panel;
}

template <bool both>
MIRRORGAN_INLINE void store_sums(float* out, int64_t columns) {
  const int64_t stride = columns * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, out, stride);
  _tile_stored(1, out + 16, stride);
  if constexpr (both) {
    _tile_stored(2, out + kRows * columns, stride);
    _tile_stored(3, out + kRows * columns + 16, stride);
  }
}

struct Largest {
  MIRRORGAN_INLINE __m512 operator()(__m512 a, __m512 b) const {
    return _mm512_max_ps(a, b);
  }
};

struct Sum {
  MIRRORGAN_INLINE __m512 operator()(__m512 a, __m512 b) const {
    return _mm512_add_ps(a, b);
  }
};

// Lane r becomes what the lanes of rows[r] together are.
template <typename Operation>
MIRRORGAN_INLINE __m512 reduce(const __m512* rows, Operation together) {
  __m512 pairs[8], quads[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    pairs[i] = together(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d low = _mm512_castps_pd(pairs[2 * i]), high = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = together(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  }
  const __m512 first = together(_mm512_shuffle_f32x4(quads[0], quads[1], 0x44), _mm512_shuffle_f32x4(quads[0], quads[1], 0xee));
  const __m512 second = together(_mm512_shuffle_f32x4(quads[2], quads[3], 0x44), _mm512_shuffle_f32x4(quads[2], quads[3], 0xee));
  return together(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
}

// Softmax of each row of scores (16, columns), which are overwritten, into rows of bfloat16.
MIRRORGAN_INLINE void softmax(float* scores, int64_t columns, bfloat16_bits* out, int64_t out_stride) {
  __m512 of_row[kRows];
  alignas(64) float all[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    of_row[r] = _mm512_load_ps(scores + r * columns);
    for (int64_t c = 16; c < columns; c += 16) {
      of_row[r] = _mm512_max_ps(of_row[r], _mm512_load_ps(scores + r * columns + c));
    }
  }
  const __m512 log_of_e = _mm512_set1_ps(amx::kLogOfE);
  _mm512_store_ps(all, _mm512_mul_ps(reduce(of_row, Largest()), log_of_e));
  if (columns > kManyColumns) {
    _tile_dpbf16ps(3, 6, 7);  // nobody reads the sums: it only stays awake
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const __m512 largest = _mm512_set1_ps(all[r]);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < columns; c += 16) {
      float* at = scores + r * columns + c;
      const __m512 share = amx::PowerOfTwo()(_mm512_fmsub_ps(_mm512_load_ps(at), log_of_e, largest));
      _mm512_store_ps(at, share);
      sum = _mm512_add_ps(sum, share);
    }
    of_row[r] = sum;
  }
  _mm512_store_ps(all, _mm512_rcp14_ps(reduce(of_row, Sum())));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512 scale = _mm512_set1_ps(all[r]);
    for (int64_t c = 0; c < columns; c += kPair) {
      const float* at = scores + r * columns + c;
      _mm512_store_si512(out + r * out_stride + c,
                         (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(at + 16), scale),
                                                      _mm512_mul_ps(_mm512_load_ps(at), scale)));
    }
  }
}

// The features of up to 32 pixels; in a copy, if there have to be zeros past the last pixel and channel.
MIRRORGAN_INLINE Left features_of(
    const Arguments& a, const Panels& p, const bfloat16_bits* features, int64_t pixels, bfloat16_bits* copy) {
  const int64_t steps = p.channels / kDepth;
  if (pixels == kPixels && a.channels == p.channels) {
    return {features, a.channels, steps};
  }
  for (int64_t r = 0; r < kPixels; ++r) {
    for (int64_t c = 0; c < p.channels; c += kDepth) {
      const __mmask32 inside = r < pixels ? amx::first_of_32(a.channels - c) : 0;
      _mm512_store_si512(copy + r * p.channels + c, _mm512_maskz_loadu_epi16(inside, features + r * a.channels + c));
    }
  }
  return {copy, p.channels, steps};
}

template <bool both>
MIRRORGAN_INLINE void score(
    const Left& left,
    int64_t parts,
    const bfloat16_bits* panel,
    const float* padding,
    int64_t columns,
    float* scores) {
  for (int64_t c = 0; c < columns; c += kPair) {
    _tile_loadd(0, padding + c, 0);
    _tile_loadd(1, padding + c + 16, 0);
    if constexpr (both) {
      _tile_loadd(2, padding + c, 0);
      _tile_loadd(3, padding + c + 16, 0);
    }
    for (int64_t part = 0; part < parts; ++part) {
      panel = add_products<both>(left, panel);
    }
    store_sums<both>(scores + c, columns);
  }
}

// Softmaxes over words or gates: `columns` of the rows of `shares`, which are `depth` apart. The scores are sums of so many
// parts, each a product of the features.
MIRRORGAN_INLINE void share(
    const Left& features,
    int64_t parts,
    const bfloat16_bits* panel,
    const float* padding,
    int64_t columns,
    float* scores,
    bfloat16_bits* shares,
    int64_t depth) {
  if (columns == kPair) {
    score<true>(features, parts, panel, padding, kPair, scores);
    softmax(scores, kPair, shares, depth);
    softmax(scores + kRows * kPair, kPair, shares + kRows * depth, depth);
    return;
  }
  // More of them are too many for the first-level cache, beside the panels.
  for (int64_t r = 0; r < kPixels; r += kRows) {
    score<false>({features.rows + r * features.columns, features.columns, features.steps}, parts, panel, padding, columns,
                 scores);
    softmax(scores, columns, shares + r * depth, depth);
  }
}

// New sums of 32 rows, after their first step. What the tiles hold goes to `before`, if that is somewhere, and leaves each
// tile only where it has to: the unit waits while four tiles leave together.
MIRRORGAN_INLINE void begin_sums(const Left& left, const bfloat16_bits* panel, float* before) {
  constexpr int64_t kRowBytes = kPair * static_cast<int64_t>(sizeof(float));
  const int64_t stride = left.columns * static_cast<int64_t>(sizeof(bfloat16_bits));
  const bool leave = before != nullptr;
  _tile_loadd(4, left.rows, stride);
  _tile_loadd(6, panel, kTileRowBytes);
  if (leave) {
    _tile_stored(0, before, kRowBytes);
  }
  _tile_zero(0);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, panel + kTile, kTileRowBytes);
  if (leave) {
    _tile_stored(1, before + 16, kRowBytes);
  }
  _tile_zero(1);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left.rows + kRows * left.columns, stride);
  if (leave) {
    _tile_stored(2, before + kRows * kPair, kRowBytes);
  }
  _tile_zero(2);
  _tile_dpbf16ps(2, 5, 6);
  if (leave) {
    _tile_stored(3, before + kRows * kPair + 16, kRowBytes);
  }
  _tile_zero(3);
  _tile_dpbf16ps(3, 5, 7);
}

MIRRORGAN_INLINE void write_columns(
    const Arguments& a, const float* sums, int64_t column, int64_t pixels, bfloat16_bits* out) {
  const __mmask32 inside = amx::first_of_32(a.out_channels - column);
#pragma GCC unroll 4
  for (int64_t r = 0; r < pixels; ++r) {
    const float* row = sums + r * kPair;
    _mm512_mask_storeu_epi16(out + r * a.out_channels + column, inside,
                             (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(row + 16), _mm512_load_ps(row)));
  }
}

MIRRORGAN_INLINE void mix(
    const Arguments& a,
    const Panels& p,
    const Left& features,
    const Left& shares,
    bfloat16_bits* out,
    int64_t pixels,
    float* sums) {
  const Left rest{features.rows + kDepth, features.columns, features.steps - 1};
  float* before = nullptr;  // of the pair of columns before
  for (int64_t column = 0; column < p.out_channels; column += kPair) {
    const bfloat16_bits* panel = p.mix + column * depth_of(p);
    begin_sums(features, panel, before);
    add_products<true>(shares, add_products<true>(rest, panel + 2 * kTile));
    if (before != nullptr) {
      write_columns(a, before, column - kPair, pixels, out);
    }
    before = before == sums ? sums + kPixels * kPair : sums;
  }
  store_sums<true>(before, kPair);
  write_columns(a, before, p.out_channels - kPair, pixels, out);
}

// What a block of pixels needs.
struct Space {
  bfloat16_bits *features, *shares;
  float* sums;  // and scores
};

void attend(
    const Arguments& a,
    const Panels& p,
    const bfloat16_bits* features,
    bfloat16_bits* out,
    int64_t rows,
    int64_t width,
    int64_t pitch,
    const Space& space) {
  const amx::Tiles tiles;
  const int64_t depth = p.words + p.gates;
  const Left shares{space.shares, depth, depth / kDepth};
  for (int64_t row = 0; row < rows; ++row, features += width * a.channels, out += pitch) {
    for (int64_t pixel = 0; pixel < width; pixel += kPixels) {
      const int64_t pixels = width - pixel < kPixels ? width - pixel : kPixels;
      const Left left = features_of(a, p, features + pixel * a.channels, pixels, space.features);
      share(left, 1, p.keys, p.padding, p.words, space.sums, space.shares, depth);
      if (p.gates > 0) {
        share(left, 2, p.gate, p.padding + p.words, p.gates, space.sums, space.shares + p.words, depth);
      }
      mix(a, p, left, shares, out + pixel * a.out_channels, pixels, space.sums);
    }
  }
}

MIRRORGAN_END_AMX

}  // namespace

int64_t panels_size(const Arguments& a) {
  const int64_t channels = filled(a.channels), words = filled(std::max<int64_t>(1, a.words_per_sample));
  const int64_t gates = filled(a.gates()), padding = 2 * (words + gates);  // of float32
  return padding + channels * words + 2 * channels * gates + (channels + words + gates) * filled(a.out_channels);
}

Panels pack_panels(const Arguments& a, const Sample& sample, bfloat16_bits* storage) {
  constexpr float kOutOfSight = -1e30f;
  Panels p{};
  p.channels = filled(a.channels);
  p.words = filled(std::max<int64_t>(1, sample.words));
  p.gates = filled(a.gates());
  p.out_channels = filled(a.out_channels);
  auto* padding = reinterpret_cast<float*>(storage);
  bfloat16_bits* keys = storage + 2 * (p.words + p.gates);
  bfloat16_bits* gate = keys + p.channels * p.words;
  bfloat16_bits* mix = gate + 2 * p.channels * p.gates;
  const int64_t steps = p.channels / kDepth, depth_steps = depth_of(p) / kDepth, pairs = p.out_channels / kPair;
  for (int64_t t = 0; t < p.words; ++t) {
    padding[t] = t < sample.words || sample.words == 0 ? 0.0f : kOutOfSight;  // something has to be in sight
  }
  for (int64_t c = 0; c < p.gates; ++c) {
    padding[p.words + c] = c < a.channels ? 0.0f : kOutOfSight;
  }
  pack(keys, p.words / kPair, steps, 0, sample.keys, 1, a.channels, a.channels, sample.words);
  if (p.gates > 0) {
    // In two parts, so that the scores are as good as of float32: a softmax makes much of a difference.
    const int64_t size = a.channels * a.channels;
    static thread_local Workspace<float> workspace;
    float* rest = workspace.at_least(size);
    round_off(sample.gate, rest, size);
    pack(gate, p.gates / kPair, 2 * steps, 0, sample.gate, 1, a.channels, a.channels, a.channels);
    pack(gate, p.gates / kPair, 2 * steps, steps, rest, 1, a.channels, a.channels, a.channels);
  }
  const float* of_words = sample.mix + a.channels * a.out_channels;
  const float* of_gates = of_words + sample.words * a.out_channels;
  pack(mix, pairs, depth_steps, 0, sample.mix, a.out_channels, 1, a.channels, a.out_channels);
  // (Without a real word there is one step of zeros.)
  pack(mix, pairs, depth_steps, steps, of_words, a.out_channels, 1, sample.words, a.out_channels);
  if (sample.words == 0) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill_n(mix + (pair * depth_steps + steps) * 2 * kTile, 2 * kTile, bfloat16_bits{0});
    }
  }
  pack(mix, pairs, depth_steps, steps + p.words / kDepth, of_gates, a.out_channels, 1, a.gates(), a.out_channels);
  p.padding = padding;
  p.keys = keys;
  p.gate = gate;
  p.mix = mix;
  return p;
}

void attend_amx(const Arguments& a, const Panels& panels, const bfloat16_bits* features, bfloat16_bits* out, int64_t rows,
                int64_t pixels, int64_t pitch) {
  static thread_local Workspace<bfloat16_bits> tiles;
  static thread_local Workspace<float> sums;
  bfloat16_bits* shares = tiles.at_least(kPixels * depth_of(panels));
  bfloat16_bits* copy = shares + kPixels * (panels.words + panels.gates);
  attend(a, panels, features, out, rows, pixels, pitch,
         {copy, shares, sums.at_least(std::max(2 * kPixels * kPair, kRows * std::max(panels.words, panels.gates)))});
}

}  // namespace mirrorgan::attention_mix

#endif
