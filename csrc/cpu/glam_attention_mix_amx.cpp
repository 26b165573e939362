// The form of mirrorgan::glam_attention_mix with AMX. 32 pixels are the rows of two left tiles, so that each tile of
// weights from the second-level cache is used twice.
//
// The features are the left tiles for both kinds of scores and for the first part of the mix. If they fill whole tiles,
// they are loaded directly from the map. The left tiles for the rest of the mix are the results of the softmaxes: the
// shares of the words, followed by the shares of the gates. With many words their context, keys softmax(keys f), takes
// the place of their shares: it is only as long as the features of a pixel.
//
// The processor looks at most about 500 instructions ahead, fewer than a softmax takes. So the AMX unit would be idle
// during a softmax, and the vector units during the products. Therefore the code computes rows of one result between
// the tile products of the next.

#include "glam_attention_mix.h"

#if defined(MIRRORGAN_X86)

#include <algorithm>
#include <cmath>
#include <limits>

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
constexpr int64_t kSums = kPixels * kPair;

// The softmax computes with base-2 logarithms in units of 1/128. As an integer, such a logarithm is almost the bit
// pattern of the bfloat16 number: 7 bits of fraction below the exponent, which has a bias of 127. But the mantissa of
// 2^x is smaller than the fraction of x. This table has the difference for each fraction.
struct alignas(64) Mantissas {
  static constexpr int kParts = 128;

  uint8_t difference[kParts];

  Mantissas() {
    for (int part = 0; part < kParts; ++part) {
      const double mantissa = kParts * (std::exp2(part / static_cast<double>(kParts)) - 1);
      difference[part] = static_cast<uint8_t>(std::lround(part - mantissa));
    }
  }
};
const Mantissas kMantissas;

struct alignas(64) Ones {
  bfloat16_bits of_tile[kTile];

  Ones() {
    std::fill_n(of_tile, kTile, bfloat16_bits{0x3f80});
  }
};
const Ones kOnes;

constexpr float kScoreScale = Mantissas::kParts * amx::kLogOfE;
// The logarithm of 2^50, which stands for a score of 0. If the largest score is between -34 and 32, the sum of the
// powers is at least 1 and far from infinity. Otherwise the scores are converted again, relative to the largest one.
constexpr float kLogOfZeroScore = Mantissas::kParts * (127.0f + 50.0f);
constexpr short kTooLarge = Mantissas::kParts * (127 + 97);

int64_t padded(int64_t count) {
  return (count + kPair - 1) / kPair * kPair;
}

// The number of columns for the words in the mix: of their shares or of their context.
int64_t words_depth(const Panels& p) {
  return p.values == nullptr ? p.words : p.channels;
}

int64_t depth_of(const Panels& p) {
  return p.channels + words_depth(p) + p.gates;
}

// The column whose score is at this place in two tiles. The instruction that packs the numbers of both tiles to 16 bits
// takes four numbers from each of them in turn.
int64_t column_at(int64_t place) {
  return place / kPair * kPair + place % 16 / 4 * 8 + place % kPair / 16 * 4 + place % 4;
}

MIRRORGAN_BEGIN_AMX

// The tiles of a panel, (pairs, steps, 2, kTile). A row of a tile holds two rows of a matrix, interleaved.
struct Panel {
  bfloat16_bits* tiles;
  int64_t columns, steps;  // the size of the panel

  MIRRORGAN_INLINE bfloat16_bits* rows(int64_t tile, int64_t row) const {
    return tiles + ((tile / 2 * steps + row / kDepth) * 2 + tile % 2) * kTile + row % kDepth * 16;
  }
};

// Packs a matrix (rows, columns) into the steps [begin, end) of a panel, padded with zeros.
void pack(const Panel& panel, int64_t begin, int64_t end, const float* matrix, int64_t rows, int64_t columns) {
  alignas(64) static constexpr uint16_t kInTurns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i in_turns = _mm512_load_si512(kInTurns);
  for (int64_t tile = 0; tile < panel.columns / 16; ++tile) {
    const __mmask16 inside = amx::first_of(columns - tile * 16);
    for (int64_t row = 0; row < (end - begin) * kDepth; row += 2) {
      const float* above = matrix + row * columns + tile * 16;
      const __m512 upper = _mm512_maskz_loadu_ps(row < rows ? inside : 0, above);
      const __m512 lower = _mm512_maskz_loadu_ps(row + 1 < rows ? inside : 0, above + columns);
      _mm512_store_si512(panel.rows(tile, begin * kDepth + row),
                         _mm512_permutexvar_epi16(in_turns, (__m512i)_mm512_cvtne2ps_pbh(lower, upper)));
    }
  }
}

// Gathers two neighboring numbers from each of eight rows.
MIRRORGAN_INLINE __m512 gather_pairs(const float* first, __m512i starts, __mmask8 exist) {
  return _mm512_castpd_ps(_mm512_mask_i64gather_pd(_mm512_setzero_pd(), exist, starts, first, sizeof(float)));
}

// Packs the transpose of a matrix (columns, rows) into a panel for scores, from step `begin` on. The rows fill whole steps.
void pack_for_scores(const Panel& panel, int64_t begin, const float* matrix, int64_t columns, int64_t rows) {
  for (int64_t tile = 0; tile < panel.columns / 16; ++tile) {
    alignas(64) int64_t starts[16];
    unsigned exist = 0;
    for (int64_t c = 0; c < 16; ++c) {
      const int64_t column = column_at(tile * 16 + c);
      starts[c] = column * rows;
      exist |= (column < columns ? 1u : 0u) << c;
    }
    const __m512i left = _mm512_load_si512(starts), right = _mm512_load_si512(starts + 8);
    for (int64_t row = 0; row < rows; row += 2) {
      const __m512 first = gather_pairs(matrix + row, left, static_cast<__mmask8>(exist));
      const __m512 last = gather_pairs(matrix + row, right, static_cast<__mmask8>(exist >> 8));
      _mm512_store_si512(panel.rows(tile, begin * kDepth + row), (__m512i)_mm512_cvtne2ps_pbh(last, first));
    }
  }
}

// Multiplies numbers (rows, columns) by `kScoreScale`, and pads each row with zeros to whole steps.
void scale(const float* numbers, int64_t rows, int64_t columns, float* scaled) {
  for (int64_t row = 0; row < rows; ++row, numbers += columns, scaled += padded(columns)) {
    for (int64_t c = 0; c < columns; ++c) {
      scaled[c] = kScoreScale * numbers[c];
    }
    std::fill(scaled + columns, scaled + padded(columns), 0.0f);
  }
}

// Computes the error of rounding `count` numbers to bfloat16.
void rounding_errors(const float* numbers, float* rest, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    bfloat16_bits rounded;
    store(numbers[i], &rounded);
    rest[i] = numbers[i] - to_float(rounded);
  }
}

// Returns a vector whose lane r is the sum of the lanes of rows[r].
MIRRORGAN_INLINE __m512 sum_lanes(const __m512* rows) {
  __m512 twos[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 one = rows[2 * i], other = rows[2 * i + 1];
    twos[i] = _mm512_add_ps(_mm512_unpacklo_ps(one, other), _mm512_unpackhi_ps(one, other));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d one = _mm512_castps_pd(twos[2 * i]), other = _mm512_castps_pd(twos[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(one, other)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(one, other)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 one = fours[2 * i], other = fours[2 * i + 1];
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(one, other, 0x44), _mm512_shuffle_f32x4(one, other, 0xee));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88), _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

struct Logarithms {
  __m512i difference[2] = {_mm512_load_si512(kMantissas.difference), _mm512_load_si512(kMantissas.difference + 64)};

  MIRRORGAN_INLINE Logarithms() {}

  // The logarithms of e^score, at least 0, for 32 scores that `scale` has converted to units of 1/128.
  MIRRORGAN_INLINE __m512i of(const float* scores) const {
    return _mm512_packus_epi32(_mm512_cvtps_epi32(_mm512_load_ps(scores)), _mm512_cvtps_epi32(_mm512_load_ps(scores + 16)));
  }

  // The logarithms of sixteen sums. Before rounding, the error is 1/9 of a unit.
  MIRRORGAN_INLINE __m512i of(__m512 sums) const {
    const __m512 x = _mm512_sub_ps(_mm512_getmant_ps(sums, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), _mm512_set1_ps(1.0f));
    const __m512 bend = _mm512_fmadd_ps(x, _mm512_set1_ps(-0.15921939f), _mm512_set1_ps(0.42286484f));
    const __m512 log = _mm512_add_ps(_mm512_getexp_ps(sums), _mm512_fmadd_ps(bend, _mm512_fnmadd_ps(x, x, x), x));
    return _mm512_cvtps_epi32(_mm512_mul_ps(log, _mm512_set1_ps(Mantissas::kParts)));
  }

  // The bfloat16 numbers whose logarithms these are.
  MIRRORGAN_INLINE __m512i powers(__m512i logarithms) const {
    constexpr __mmask64 kFractions = 0x5555555555555555;
    return _mm512_sub_epi16(
        logarithms, _mm512_maskz_permutex2var_epi8(kFractions, difference[0], logarithms, difference[1]));
  }
};

// The rows of two left tiles, one after the other.
struct Left {
  const bfloat16_bits* rows;
  int64_t columns;  // elements from a row to the next
  int64_t steps;
};

// Work to do between products is a type with rows<first, count>(), which processes these rows of 32. Here there is none.
struct Nothing {
  template <int first, int count>
  MIRRORGAN_INLINE void rows() {}
};

template <int first, int count, typename Work>
MIRRORGAN_INLINE void meanwhile(Work& work) {
  if constexpr (count > 0) {
    amx::in_order();
    work.template rows<first, count>();
    amx::in_order();
  }
}

// Adds the products of 32 rows in one step to the tiles 0 to 3. Returns the next step of the panel.
template <int first, int count, typename Work>
MIRRORGAN_INLINE const bfloat16_bits* add_step(const Left& left, int64_t step, const bfloat16_bits* panel, Work& work) {
  constexpr int kPart = count / 4;
  const int64_t stride = left.columns * static_cast<int64_t>(sizeof(bfloat16_bits));
  const bfloat16_bits* rows = left.rows + step * kDepth;
  _tile_loadd(4, rows, stride);
  _tile_loadd(6, panel, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  meanwhile<first, kPart>(work);
  _tile_loadd(7, panel + kTile, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  meanwhile<first + kPart, kPart>(work);
  _tile_loadd(5, rows + kRows * left.columns, stride);
  _tile_dpbf16ps(2, 5, 6);
  meanwhile<first + 2 * kPart, kPart>(work);
  _tile_dpbf16ps(3, 5, 7);
  meanwhile<first + 3 * kPart, kPart>(work);
  return panel + 2 * kTile;
}

// Adds the products in the steps [begin, end).
MIRRORGAN_INLINE const bfloat16_bits* add_steps(
    const Left& left, int64_t begin, int64_t end, const bfloat16_bits* panel) {
  Nothing nothing;
  for (int64_t step = begin; step < end; ++step) {
    panel = add_step<0, 0>(left, step, panel, nothing);
  }
  return panel;
}

MIRRORGAN_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Stores the tiles 0 to 3 as (kPixels, kPair).
template <int first, int count, typename Work>
MIRRORGAN_INLINE void store_sums(float* sums, Work& work) {
  constexpr int64_t kRowBytes = kPair * static_cast<int64_t>(sizeof(float));
  constexpr int kPart = count / 4;
  _tile_stored(0, sums, kRowBytes);
  meanwhile<first, kPart>(work);
  _tile_stored(1, sums + 16, kRowBytes);
  meanwhile<first + kPart, kPart>(work);
  _tile_stored(2, sums + kRows * kPair, kRowBytes);
  meanwhile<first + 2 * kPart, kPart>(work);
  _tile_stored(3, sums + kRows * kPair + 16, kRowBytes);
  meanwhile<first + 3 * kPart, kPart>(work);
}

// The features of up to 32 pixels. If they need padding, they are copied, with zeros after the last pixel and channel.
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
  amx::in_order();
  return {copy, p.channels, steps};
}

// A softmax over the scores of 32 pixels.
struct Softmax {
  const bfloat16_bits* panel;
  const float* start;  // initial values of the scores
  int64_t parts;       // how many matrices the features are multiplied by; the scores are the sum of the products
  int64_t columns;     // number of scores
  bfloat16_bits* out;
  int64_t depth;  // elements from a row of `out` to the next
};

// Computes the scores [column, column + 32).
template <typename Work>
MIRRORGAN_INLINE void score(const Left& features, const Softmax& s, int64_t column, float* scores, Work& work) {
  const float* start = s.start + column;
  const bfloat16_bits* panel = s.panel + column * features.steps * s.parts * kDepth;
  _tile_loadd(0, start, 0);
  _tile_loadd(1, start + 16, 0);
  _tile_loadd(2, start, 0);
  _tile_loadd(3, start + 16, 0);
  panel = add_step<0, 16>(features, 0, panel, work);
  panel = add_steps(features, 1, features.steps, panel);
  for (int64_t part = 1; part < s.parts; ++part) {
    panel = add_steps(features, 0, features.steps, panel);
  }
  store_sums<16, 16>(scores, work);
}

// Converts 32 scores of each pixel to logarithms and sums their powers; or, if `powers`, converts them to their powers.
template <bool powers>
struct Convert {
  const float* scores;  // (kPixels, kPair)
  bfloat16_bits* out;
  int64_t depth;
  bool begins;       // whether these are the first scores of the pixels
  __m512* sums;      // for each pixel a vector of sums of its powers; null if `powers`
  __m512i* largest;  // the largest logarithms of all pixels
  Logarithms logarithms;

  template <int first, int count>
  MIRRORGAN_INLINE void rows() {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512i maximum = begins && first == 0 ? _mm512_setzero_si512() : *largest;
#pragma GCC unroll 8
    for (int r = first; r < first + count; ++r) {
      const __m512i logs = logarithms.of(scores + r * kPair), power = logarithms.powers(logs);
      maximum = _mm512_max_epu16(maximum, logs);
      _mm512_store_si512(out + r * depth, powers ? power : logs);
      if constexpr (!powers) {
        sums[r] = _mm512_dpbf16_ps(begins ? _mm512_setzero_ps() : sums[r], (__m512bh)power, ones);
      }
    }
    *largest = maximum;
  }
};

// Saves all tiles of this thread and restores them at the end of the scope.
class SavedTiles {
 public:
  MIRRORGAN_INLINE SavedTiles() {
    _tile_stored(0, saved_[0], kTileRowBytes);
    _tile_stored(1, saved_[1], kTileRowBytes);
    _tile_stored(2, saved_[2], kTileRowBytes);
    _tile_stored(3, saved_[3], kTileRowBytes);
    _tile_stored(4, saved_[4], kTileRowBytes);
    _tile_stored(5, saved_[5], kTileRowBytes);
    _tile_stored(6, saved_[6], kTileRowBytes);
    _tile_stored(7, saved_[7], kTileRowBytes);
  }
  MIRRORGAN_INLINE ~SavedTiles() {
    _tile_loadd(0, saved_[0], kTileRowBytes);
    _tile_loadd(1, saved_[1], kTileRowBytes);
    _tile_loadd(2, saved_[2], kTileRowBytes);
    _tile_loadd(3, saved_[3], kTileRowBytes);
    _tile_loadd(4, saved_[4], kTileRowBytes);
    _tile_loadd(5, saved_[5], kTileRowBytes);
    _tile_loadd(6, saved_[6], kTileRowBytes);
    _tile_loadd(7, saved_[7], kTileRowBytes);
  }
  SavedTiles(const SavedTiles&) = delete;
  SavedTiles& operator=(const SavedTiles&) = delete;

 private:
  alignas(64) bfloat16_bits saved_[8][kTile];
};

// Whether a softmax must be computed again, because of the largest logarithm or because of the sum of the powers.
MIRRORGAN_INLINE bool too_large(__m512i largest) {
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(kTooLarge)) != 0;
}

MIRRORGAN_INLINE bool too_small(__m512 sums) {
  return _mm512_cmp_ps_mask(sums, _mm512_set1_ps(1.0f), _CMP_LT_OQ) != 0;
}

// Converts all scores again. For the pixels that need it, they are shifted so that the largest one is at
// `kLogOfZeroScore`. The other pixels keep their bits.
template <bool powers>
[[gnu::noinline, gnu::cold]] void convert_again(
    const Left& features, const Softmax& s, const float* sums_before, __m512* sums) {
  const SavedTiles tiles;
  Nothing nothing;
  alignas(64) float scores[kSums];
  float highest[kPixels];
  bool is_fine[kPixels];
  std::fill_n(highest, kPixels, -std::numeric_limits<float>::infinity());
  for (int64_t column = 0; column < s.columns; column += kPair) {
    score(features, s, column, scores, nothing);
    for (int64_t r = 0; r < kPixels; ++r) {
      highest[r] = std::max(highest[r], *std::max_element(scores + r * kPair, scores + (r + 1) * kPair));
    }
  }
  for (int64_t r = 0; r < kPixels; ++r) {
    is_fine[r] = sums_before[r] >= 1.0f && std::nearbyint(highest[r]) < kTooLarge;
  }
  __m512i largest;
  for (int64_t column = 0; column < s.columns; column += kPair) {
    score(features, s, column, scores, nothing);
    for (int64_t i = 0; i < kSums; ++i) {
      if (!is_fine[i / kPair]) {
        // In this order: a huge score would absorb the constant.
        scores[i] = scores[i] - highest[i / kPair] + kLogOfZeroScore;
      }
    }
    Convert<powers> convert{scores, s.out + column, s.depth, column == 0, sums, &largest, {}};
    meanwhile<0, 32>(convert);
  }
}

// Converts logarithms to shares, in place.
struct Normalize {
  const Left& features;
  const Softmax& softmax;
  __m512* sums;
  const __m512i& largest;
  Logarithms logarithms;
  alignas(64) int32_t sum_logs[kPixels];  // each twice, in the lower and the upper 16 bits

  template <int first, int count>
  MIRRORGAN_INLINE void rows() {
    if constexpr (first == 0 && count > 0) {
      begin();
    }
#pragma GCC unroll 4
    for (int r = first; r < first + count; ++r) {
      const __m512i sum_log = _mm512_set1_epi32(sum_logs[r]);
      for (int64_t c = 0; c < softmax.columns; c += kPair) {
        bfloat16_bits* at = softmax.out + r * softmax.depth + c;
        _mm512_store_si512(at, logarithms.powers(_mm512_subs_epu16(_mm512_load_si512(at), sum_log)));
      }
    }
  }

 private:
  MIRRORGAN_INLINE void begin() {
    __m512 upper = sum_lanes(sums), lower = sum_lanes(sums + kRows);
    if (too_large(largest) || too_small(_mm512_min_ps(upper, lower))) [[unlikely]] {
      alignas(64) float before[kPixels];
      _mm512_store_ps(before, upper);
      _mm512_store_ps(before + kRows, lower);
      convert_again<false>(features, softmax, before, sums);
      upper = sum_lanes(sums);
      lower = sum_lanes(sums + kRows);
    }
    keep(logarithms.of(upper), sum_logs);
    keep(logarithms.of(lower), sum_logs + kRows);
  }

  MIRRORGAN_INLINE static void keep(__m512i sixteen, int32_t* out) {
    _mm512_store_si512(out, _mm512_or_si512(_mm512_slli_epi32(sixteen, 16), sixteen));
  }
};

// Divides sums of the words' values, weighted by their powers, by the sum of the powers: the words' context.
struct Average {
  const float* sums;    // (kPixels, kPair)
  const float* powers;  // (kPixels, 16), the sum of the powers in all 16 columns
  bfloat16_bits* out;
  int64_t depth;

  template <int first, int count>
  MIRRORGAN_INLINE void rows() {
#pragma GCC unroll 4
    for (int r = first; r < first + count; ++r) {
      const __m512 scale = _mm512_rcp14_ps(_mm512_load_ps(powers + r * 16));
      const float* row = sums + r * kPair;
      _mm512_store_si512(out + r * depth, (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(row + 16), scale),
                                                                       _mm512_mul_ps(_mm512_load_ps(row), scale)));
    }
  }
};

// Writes columns of the result.
struct Write {
  const float* sums = nullptr;  // (kPixels, kPair)
  bfloat16_bits* out = nullptr;
  int64_t out_channels = 0, pixels = 0;
  __mmask32 inside = 0;

  template <int first, int count>
  MIRRORGAN_INLINE void rows() {
#pragma GCC unroll 4
    for (int r = first; r < first + count; ++r) {
      if (r < pixels) {
        const float* row = sums + r * kPair;
        _mm512_mask_storeu_epi16(out + r * out_channels, inside,
                                 (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(row + 16), _mm512_load_ps(row)));
      }
    }
  }
};

template <typename One, typename Other>
struct Both {
  One& one;
  Other& other;

  template <int first, int count>
  MIRRORGAN_INLINE void rows() {
    one.template rows<first, count>();
    other.template rows<first, count>();
  }
};

// Memory for a block of pixels.
struct Space {
  bfloat16_bits *features, *shares, *powers;
  float *sums, *power_sums;
};

// Processes one block of pixels after the other.
struct Attention {
  const Arguments& a;
  const Panels& p;
  const Space space;
  const int64_t depth = words_depth(p) + p.gates;
  const Left shares{space.shares, depth, depth / kDepth};
  Write write{};  // what is left to write of the previous block
  bool second = false;

  // Computes the pixels of a row, at most a block.
  MIRRORGAN_INLINE void attend(const bfloat16_bits* pixel_features, int64_t pixels, bfloat16_bits* out) {
    const Left features = features_of(a, p, pixel_features, pixels, space.features);
    __m512i largest;
    if (p.values == nullptr) {
      __m512 sums[kPixels];
      const Softmax words{p.keys, p.start, 1, p.words, space.shares, depth};
      auto convert = score_all<false>(features, words, sums, largest, write);
      Normalize normalize{features, words, sums, largest, {}, {}};
      finish(features, convert, normalize, pixels, out);
    } else {
      const Softmax words{p.keys, p.start, 1, p.words, space.powers, p.words};
      auto convert = score_all<true>(features, words, nullptr, largest, write);
      Average average = average_values(words, convert);
      if (too_large(largest) || too_small(least_sum())) [[unlikely]] {
        float before[kPixels];
        for (int64_t r = 0; r < kPixels; ++r) {
          before[r] = space.power_sums[r * 16];
        }
        convert_again<true>(features, words, before, nullptr);
        Nothing nothing;
        average = average_values(words, nothing);
      }
      Nothing nothing;
      finish(features, average, nothing, pixels, out);
    }
  }

  MIRRORGAN_INLINE void write_last() {
    meanwhile<0, 32>(write);
  }

 private:
  // Memory for a pair of tiles of columns. The memory of the previous pair stays valid.
  MIRRORGAN_INLINE float* next() {
    second = !second;
    return space.sums + (second ? kSums : 0);
  }

  // Computes all scores. Each pair of tiles of columns is converted while the next one is multiplied. Returns the
  // conversion of the last pair, which is still to be done.
  template <bool powers, typename Work>
  MIRRORGAN_INLINE Convert<powers> score_all(
      const Left& features, const Softmax& s, __m512* sums, __m512i& largest, Work& work) {
    float* scores = next();
    score(features, s, 0, scores, work);
    Convert<powers> convert{scores, s.out, s.depth, true, sums, &largest, {}};
    for (int64_t column = kPair; column < s.columns; column += kPair) {
      scores = next();
      score(features, s, column, scores, convert);
      convert.scores = scores;
      convert.out = s.out + column;
      convert.begins = false;
    }
    return convert;
  }

  // Computes the words' context, except for the returned work. `work` computes the last columns of the powers; the
  // others are in `words.out` already. There is more than one step, see `max_folded_words`.
  template <typename Work>
  MIRRORGAN_INLINE Average average_values(const Softmax& words, Work& work) {
    const Left powers{words.out, words.depth, words.columns / kDepth};
    const bfloat16_bits* panel = p.values;
    Average average{};
    for (int64_t column = 0; column < p.channels; column += kPair) {
      clear_sums();
      if (column == 0) {
        panel = add_step<0, 32>(powers, 0, panel, work);
      } else {
        panel = add_step<0, 32>(powers, 0, panel, average);
      }
      panel = add_steps(powers, 1, powers.steps, panel);
      if (column == 0) {
        sum_powers(powers);
      }
      Nothing nothing;
      float* sums = next();
      store_sums<0, 0>(sums, nothing);
      average = {sums, space.power_sums, space.shares + column, depth};
    }
    return average;
  }

  // Computes the sum of the powers of each pixel, in 16 columns. Leaves the tiles 0 to 3 unchanged.
  MIRRORGAN_INLINE void sum_powers(const Left& powers) {
    const int64_t stride = powers.columns * static_cast<int64_t>(sizeof(bfloat16_bits));
    _tile_loadd(5, kOnes.of_tile, kTileRowBytes);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t step = 0; step < powers.steps; ++step) {
      const bfloat16_bits* rows = powers.rows + step * kDepth;
      _tile_loadd(4, rows, stride);
      _tile_dpbf16ps(6, 4, 5);
      _tile_loadd(4, rows + kRows * powers.columns, stride);
      _tile_dpbf16ps(7, 4, 5);
    }
    _tile_stored(6, space.power_sums, kTileRowBytes);
    _tile_stored(7, space.power_sums + kRows * 16, kTileRowBytes);
  }

  MIRRORGAN_INLINE __m512 least_sum() const {
    __m512 least = _mm512_load_ps(space.power_sums);
    for (int64_t r = 1; r < kPixels; ++r) {
      least = _mm512_min_ps(least, _mm512_load_ps(space.power_sums + r * 16));
    }
    return least;
  }

  // Computes the gates and the mix. `first`, and then `second_work`, is the work that is left for the words.
  template <typename First, typename Second>
  MIRRORGAN_INLINE void finish(
      const Left& features, First& first, Second& second_work, int64_t pixels, bfloat16_bits* out) {
    if (p.gates > 0) {
      __m512 sums[kPixels];
      __m512i largest;
      const Softmax gates{p.gate, p.start + p.words, 2, p.gates, space.shares + words_depth(p), depth};
      auto convert = score_all<false>(features, gates, sums, largest, first);
      Both<decltype(convert), Second> both{convert, second_work};
      Normalize normalize{features, gates, sums, largest, {}, {}};
      mix(features, both, normalize, pixels, out);
    } else {
      mix(features, first, second_work, pixels, out);
    }
  }

  template <typename First, typename Second>
  MIRRORGAN_INLINE void mix(
      const Left& features, First& first, Second& second_work, int64_t pixels, bfloat16_bits* out) {
    Nothing nothing;
    clear_sums();
    const bfloat16_bits* panel = add_step<0, 32>(features, 0, p.mix, first);
    panel = add_steps(features, 1, features.steps, panel);
    meanwhile<0, 32>(second_work);
    panel = add_steps(shares, 0, shares.steps, panel);
    float* sums = next();
    store_sums<0, 0>(sums, nothing);
    for (int64_t column = kPair; column < p.out_channels; column += kPair) {
      write = write_columns(sums, column - kPair, pixels, out);
      clear_sums();
      panel = add_step<0, 16>(features, 0, panel, write);
      panel = add_steps(features, 1, features.steps, panel);
      panel = add_steps(shares, 0, shares.steps, panel);
      sums = next();
      store_sums<16, 16>(sums, write);
    }
    write = write_columns(sums, p.out_channels - kPair, pixels, out);
  }

  MIRRORGAN_INLINE Write write_columns(const float* sums, int64_t column, int64_t pixels, bfloat16_bits* out) const {
    return {sums, out + column, a.out_channels, pixels, amx::first_of_32(a.out_channels - column)};
  }
};

// See `attend_amx`.
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
  Attention attention{a, p, space};
  for (int64_t row = 0; row < rows; ++row, features += width * a.channels, out += pitch) {
    for (int64_t pixel = 0; pixel < width; pixel += kPixels) {
      attention.attend(features + pixel * a.channels, std::min(width - pixel, kPixels), out + pixel * a.out_channels);
    }
  }
  attention.write_last();
}

MIRRORGAN_END_TARGET

}  // namespace

int64_t max_folded_words(const Arguments& a) {
  return 2 * padded(a.channels);
}

int64_t panels_size(const Arguments& a) {
  const int64_t channels = padded(a.channels), words = padded(std::max<int64_t>(1, a.words_per_sample));
  const int64_t gates = padded(a.gates()), start = 2 * (words + gates);  // of float32
  const int64_t depth = channels + std::max(words, channels) + gates;
  return start + 2 * channels * words + 2 * channels * gates + depth * padded(a.out_channels);
}

Panels pack_panels(const Arguments& a, const Sample& sample, bfloat16_bits* storage) {
  constexpr float kMasked = -1e30f;
  Panels p{};
  p.channels = padded(a.channels);
  p.words = padded(std::max<int64_t>(1, sample.words));
  p.gates = padded(a.gates());
  p.out_channels = padded(a.out_channels);
  auto* start = reinterpret_cast<float*>(storage);
  bfloat16_bits* keys = storage + 2 * (p.words + p.gates);
  bfloat16_bits* values = keys + p.channels * p.words;
  bfloat16_bits* gate = values + p.channels * p.words;
  bfloat16_bits* mix = gate + 2 * p.channels * p.gates;
  const int64_t steps = p.channels / kDepth;
  for (int64_t t = 0; t < p.words; ++t) {
    start[t] = column_at(t) < sample.words || sample.words == 0 ? kLogOfZeroScore : kMasked;  // not all may be masked
  }
  for (int64_t c = 0; c < p.gates; ++c) {
    start[p.words + c] = column_at(c) < a.channels ? kLogOfZeroScore : kMasked;
  }
  const int64_t size = a.channels * p.channels;  // size of the gate's matrix
  static thread_local Workspace<float> workspace;
  float* scaled = workspace.at_least(std::max(sample.words * p.channels, 2 * size));
  scale(sample.keys, sample.words, a.channels, scaled);
  pack_for_scores({keys, p.words, steps}, 0, scaled, sample.words, p.channels);
  if (!sample.folded) {
    pack({values, p.channels, p.words / kDepth}, 0, p.words / kDepth, sample.keys, sample.words, a.channels);
    p.values = values;
  }
  if (p.gates > 0) {
    // In two parts, bfloat16 and its rounding error, so that the scores are about as exact as with float32. A softmax
    // amplifies errors of its scores.
    const Panel panel{gate, p.gates, 2 * steps};
    float* rest = scaled + size;
    scale(sample.gate, a.channels, a.channels, scaled);
    rounding_errors(scaled, rest, size);
    pack_for_scores(panel, 0, scaled, a.channels, p.channels);
    pack_for_scores(panel, steps, rest, a.channels, p.channels);
  }
  const Panel mix_panel{mix, p.out_channels, depth_of(p) / kDepth};
  const int64_t rows = sample.folded ? sample.words : a.channels, gates = steps + words_depth(p) / kDepth;
  const float* mix_of_words = sample.mix + a.channels * a.out_channels;
  pack(mix_panel, 0, steps, sample.mix, a.channels, a.out_channels);
  pack(mix_panel, steps, gates, mix_of_words, rows, a.out_channels);
  pack(mix_panel, gates, mix_panel.steps, mix_of_words + rows * a.out_channels, a.gates(), a.out_channels);
  p.start = start;
  p.keys = keys;
  p.gate = gate;
  p.mix = mix;
  return p;
}

void attend_amx(const Arguments& a, const Panels& panels, const bfloat16_bits* features, bfloat16_bits* out, int64_t rows,
                int64_t pixels, int64_t pitch) {
  static thread_local Workspace<bfloat16_bits> half_memory;
  static thread_local Workspace<float> float_memory;
  const int64_t shares = words_depth(panels) + panels.gates;
  Space space{};
  space.features = half_memory.at_least(kPixels * (panels.channels + shares + panels.words));
  space.shares = space.features + kPixels * panels.channels;
  space.powers = space.shares + kPixels * shares;
  space.sums = float_memory.at_least(2 * kSums + kPixels * 16);
  space.power_sums = space.sums + 2 * kSums;
  attend(a, panels, features, out, rows, pixels, pitch, space);
}

}  // namespace mirrorgan::attention_mix

#endif
