// The part of the engine that uses AMX: tiles of 16 x 32 bfloat16, and sums of 16 x 16 float32.

#include "convolution.h"

#if defined(MIRRORGAN_X86)

#include <limits>
#include <type_traits>
#include <vector>

#include "amx.h"

MIRRORGAN_BEGIN_AMX

namespace mirrorgan::convolution {
namespace {

static_assert(kGroup == amx::kRows && kDepth == amx::kDepth && kTile == amx::kTile);

constexpr int64_t kBlockRows = 2 * kGroup;
constexpr int64_t kManySteps = 12;   // 24 KiB: half of the first-level cache
constexpr int64_t kStepsAhead = 16;  // 32 KiB: how far ahead weights are prefetched that are not in the second-level cache

MIRRORGAN_INLINE void prefetch_step(const bfloat16_bits* weight) {
  constexpr int64_t kLine = 32;  // bfloat16
#pragma GCC unroll 32
  for (int64_t i = 0; i < 2 * kTile; i += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(weight + i), _MM_HINT_T1);
  }
}

constexpr int64_t kNoPlace = -1;

// Two groups, whose pixels are the rows of a block.
struct Pair {
  const bfloat16_bits *upper, *lower;  // the first pixel of each group; the offsets of the steps count from there
  bool backwards;                      // whether the steps are processed in reverse order
  int64_t places[kBlockRows];          // where each row goes in the result of the first phase; kNoPlace: it is not written
};

// The part of a block's sums that is still to be written, while the next blocks are multiplied.
template <Epilogue epilogue>
struct Pending {
  using result_t = std::conditional_t<epilogue == Epilogue::image, uint8_t, bfloat16_bits>;

  const float* sums = nullptr;      // of the next row
  const int64_t* places = nullptr;  // of the next row and those after it
  int64_t rows = 0;                 // how many rows are left
  result_t* out = nullptr;          // at the block's first channel
  const result_t* residual = nullptr;
  __mmask16 low = 0, high = 0;               // which channels of the two halves exist
  __m512 first_bias = {}, second_bias = {};  // the bias of gates is scaled, as the sigmoid wants it
  __m512 least = {};                         // of the results: zero with a ReLU

  MIRRORGAN_INLINE Pending() {}

  MIRRORGAN_INLINE Pending(
      const Arguments& a, const float* sums, const int64_t* places, const float* bias, int64_t channel)
      : sums(sums),
        places(places),
        rows(places == nullptr ? 0 : kBlockRows),
        out(static_cast<result_t*>(a.out) + channel),
        residual(a.residual == nullptr ? nullptr : static_cast<const result_t*>(a.residual) + channel),
        low(amx::first_of(a.out_channels - channel)),
        high(amx::first_of(a.out_channels - channel - kHalf)),
        first_bias(_mm512_load_ps(bias)),
        second_bias(_mm512_load_ps(bias + kHalf)),
        least(_mm512_set1_ps(a.relu ? 0.0f : -std::numeric_limits<float>::infinity())) {
    if constexpr (epilogue == Epilogue::glu) {
      second_bias = _mm512_mul_ps(second_bias, _mm512_set1_ps(amx::Sigmoid::kScale));
    }
  }
};

template <Epilogue epilogue>
MIRRORGAN_INLINE void write_pixel(
    const Pending<epilogue>& p, const amx::Sigmoid& sigmoid, const float* sums, int64_t place) {
  const __m512 first = _mm512_add_ps(_mm512_load_ps(sums), p.first_bias);
  auto* out = p.out + place;
  if constexpr (epilogue == Epilogue::image) {
    _mm_mask_storeu_epi8(out, p.low, amx::gray_levels(first));
  } else if constexpr (epilogue == Epilogue::glu) {
    const __m512 gate =
        _mm512_fmadd_ps(_mm512_load_ps(sums + kPixels * kHalf), _mm512_set1_ps(amx::Sigmoid::kScale), p.second_bias);
    const __m512 value = _mm512_mul_ps(first, sigmoid.of_scaled(gate));
    _mm256_mask_storeu_epi16(out, p.low, (__m256i)_mm512_cvtneps_pbh(value));
  } else {
    const __m512 second = _mm512_add_ps(_mm512_load_ps(sums + kPixels * kHalf), p.second_bias);
    __m512 add_low = _mm512_setzero_ps(), add_high = add_low;
    if (p.residual != nullptr) {
      add_low = amx::widen(_mm256_maskz_loadu_epi16(p.low, p.residual + place));
      add_high = amx::widen(_mm256_maskz_loadu_epi16(p.high, p.residual + place + kHalf));
    }
    // The second argument is the result if one is NaN.
    const __m512 low = _mm512_max_ps(p.least, _mm512_add_ps(first, add_low));
    const __m512 high = _mm512_max_ps(p.least, _mm512_add_ps(second, add_high));
    _mm256_mask_storeu_epi16(out, p.low, (__m256i)_mm512_cvtneps_pbh(low));
    _mm256_mask_storeu_epi16(out + kHalf, p.high, (__m256i)_mm512_cvtneps_pbh(high));
  }
}

// Writes the next Rows rows, if any are left. The number of rows is divisible by Rows.
template <int Rows, Epilogue epilogue>
MIRRORGAN_INLINE void write_rows(Pending<epilogue>& p, const amx::Sigmoid& sigmoid) {
  if (p.rows == 0) {
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    const int64_t place = p.places[i];
    if (place != kNoPlace) {
      write_pixel<epilogue>(p, sigmoid, p.sums + i * kHalf, place);
    }
  }
  p.sums += Rows * kHalf;
  p.places += Rows;
  p.rows -= Rows;
}

template <int Rows, Epilogue epilogue>
MIRRORGAN_INLINE void write_rest(Pending<epilogue>& p, const amx::Sigmoid& sigmoid) {
  while (p.rows > 0) {
    write_rows<Rows, epilogue>(p, sigmoid);
  }
}

// Lists the distance of each step's first channel from a group's first pixel.
void list_offsets(const Window<bfloat16_bits>& window, const Phase& phase, std::vector<int64_t>& offsets) {
  offsets.clear();
  for (int64_t tap = 0; tap < phase.taps; ++tap) {
    for (int64_t channel = 0; channel < window.channels; channel += kDepth) {
      offsets.push_back(window.at(0, phase.dy[tap], phase.dx[tap]) - window.taps[0] + channel);
    }
  }
}

// Lists where the rows of a group go in the result. Only the first `count` rows are written.
void list_places(const Arguments& a, const Group& group, int64_t count, const Phase& phase, int64_t* places) {
  Cursor cursor = cursor_of(a, group, phase);
  if (count == kGroup && cursor.column + kGroup <= cursor.width) {
    for (int64_t i = 0; i < kGroup; ++i) {
      places[i] = cursor.at + i * cursor.step;
    }
    return;
  }
  for (int64_t i = 0; i < kGroup; ++i, cursor.advance()) {
    places[i] = i < count ? cursor.at : kNoPlace;
  }
}

void list_pairs(
    const Arguments& a,
    const Window<bfloat16_bits>& window,
    const std::vector<Group>& groups,
    const Phase& phase,
    std::vector<Pair>& pairs) {
  // Many weights do not fit into the first-level cache together with the pixels. So every second pair processes the
  // steps in reverse order and starts with the weights that are still in the cache. The order depends only on the
  // pair's place in the map, so that the bits do not depend on the batch.
  const bool turns = a.steps > kManySteps && a.width % kBlockRows == 0;
  pairs.resize((groups.size() + 1) / 2);
  for (size_t g = 0; g < groups.size(); g += 2) {
    const bool two = g + 1 < groups.size();
    const Group &upper = groups[g], &lower = groups[two ? g + 1 : g];
    Pair& pair = pairs[g / 2];
    pair.upper = window.taps[0] + upper.offset * window.channels;
    pair.lower = window.taps[0] + lower.offset * window.channels;
    pair.backwards = turns && (upper.row + upper.column / kBlockRows) % 2 == 1;
    list_places(a, upper, upper.count, phase, pair.places);
    list_places(a, lower, two ? lower.count : 0, phase, pair.places + kGroup);
  }
}

// The AMX unit multiplies asynchronously. Meanwhile the previous block is finished, `Rows` rows twice per step. Each
// tile of sums is stored only when the next block needs the tile, as the unit would wait while four tiles are stored
// together.
template <Epilogue epilogue, int Rows>
void convolve_phase(
    const Arguments& a,
    const Window<bfloat16_bits>& window,
    const std::vector<Pair>& pairs,
    const int64_t* offsets,
    int64_t phase,
    int64_t first_block,
    int64_t end_block) {
  const amx::Tiles tiles;
  alignas(64) float sums[2][2 * kPixels * kHalf];
  alignas(64) float biases[2][kColumns];
  const int64_t pixel_bytes = window.channels * static_cast<int64_t>(sizeof(bfloat16_bits)), steps = a.steps;
  const bool once = pairs.size() == 1;  // whether each weight is read only once
  // The step after which the sums of the previous block are used. Right after step 0 they would not be stored yet.
  const int64_t taken = steps > 1 ? 1 : 0;
  Pending<epilogue> pending;
  // These belong to the block that was multiplied last.
  float* target = sums[0];
  const int64_t* places = nullptr;
  const float* bias = biases[0];
  int64_t channel = 0;
  for (int64_t block = first_block; block < end_block; ++block) {
    const auto* panel = static_cast<const bfloat16_bits*>(a.weight) + (phase * a.blocks + block) * steps * 2 * kTile;
    float* own_bias = biases[block % 2];
    read_bias(a, epilogue, block, own_bias);
    for (const Pair& pair : pairs) {
      const bfloat16_bits *upper = pair.upper, *lower = pair.lower;
      const int64_t first_step = pair.backwards ? steps - 1 : 0, direction = pair.backwards ? -1 : 1;
      const int64_t* offset = offsets + first_step;
      const bfloat16_bits* weight = panel + first_step * 2 * kTile;
      amx::Sigmoid sigmoid;
      sigmoid.keep();
      for (int64_t step = 0; step < steps; ++step, offset += direction, weight += direction * 2 * kTile) {
        if (once) {
          prefetch_step(weight + kStepsAhead * 2 * kTile);
        }
        _tile_loadd(4, upper + *offset, pixel_bytes);
        _tile_loadd(6, weight, amx::kTileRowBytes);
        if (step == 0) {
          _tile_stored(0, target, amx::kTileRowBytes);
          _tile_zero(0);
        }
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight + kTile, amx::kTileRowBytes);
        if (step == 0) {
          _tile_stored(1, target + kPixels * kHalf, amx::kTileRowBytes);
          _tile_zero(1);
        }
        _tile_dpbf16ps(1, 4, 7);
        write_rows<Rows, epilogue>(pending, sigmoid);
        _tile_loadd(5, lower + *offset, pixel_bytes);
        if (step == 0) {
          _tile_stored(2, target + kGroup * kHalf, amx::kTileRowBytes);
          _tile_zero(2);
        }
        _tile_dpbf16ps(2, 5, 6);
        if (step == 0) {
          _tile_stored(3, target + kPixels * kHalf + kGroup * kHalf, amx::kTileRowBytes);
          _tile_zero(3);
        }
        _tile_dpbf16ps(3, 5, 7);
        write_rows<Rows, epilogue>(pending, sigmoid);
        if (step == taken) {
          write_rest<2 * Rows, epilogue>(pending, sigmoid);
          pending = Pending<epilogue>(a, target, places, bias, channel);
          target = target == sums[0] ? sums[1] : sums[0];
        }
      }
      places = pair.places;
      bias = own_bias;
      channel = block * (epilogue == Epilogue::glu ? kHalf : kColumns);
    }
  }
  const amx::Sigmoid sigmoid;
  write_rest<2 * Rows, epilogue>(pending, sigmoid);
  _tile_stored(0, target, amx::kTileRowBytes);
  _tile_stored(1, target + kPixels * kHalf, amx::kTileRowBytes);
  _tile_stored(2, target + kGroup * kHalf, amx::kTileRowBytes);
  _tile_stored(3, target + kPixels * kHalf + kGroup * kHalf, amx::kTileRowBytes);
  pending = Pending<epilogue>(a, target, places, bias, channel);
  write_rest<2 * Rows, epilogue>(pending, sigmoid);
}

template <Epilogue epilogue>
void convolve_strip(
    const Arguments& a,
    const Window<bfloat16_bits>& window,
    const std::vector<Group>& groups,
    int64_t first_block,
    int64_t end_block) {
  const auto convolve = a.steps * 2 >= kBlockRows  ? convolve_phase<epilogue, 1>
                        : a.steps * 4 >= kBlockRows ? convolve_phase<epilogue, 2>
                                                    : convolve_phase<epilogue, 4>;
  static thread_local std::vector<Pair> pairs;
  static thread_local std::vector<int64_t> offsets;
  list_pairs(a, window, groups, phase_of(a, 0), pairs);
  using result_t = typename Pending<epilogue>::result_t;
  Arguments phase_arguments = a;  // the places are those of the first phase, from another `out` and residual
  for (int64_t phase = 0; phase < a.phases; ++phase) {
    list_offsets(window, phase_of(a, phase), offsets);
    const int64_t shift = (phase / 2 * a.out_pitch + phase % 2) * a.out_channels;
    phase_arguments.out = static_cast<result_t*>(a.out) + shift;
    if (a.residual != nullptr) {
      phase_arguments.residual = static_cast<const result_t*>(a.residual) + shift;
    }
    convolve(phase_arguments, window, pairs, offsets.data(), phase, first_block, end_block);
  }
}

}  // namespace

void multiply_products_amx(
    const bfloat16_bits* left,
    int64_t left_distance,
    int64_t channels,
    int64_t rows,
    int64_t products,
    const bfloat16_bits* right,
    int64_t right_distance,
    float* sums) {
  const amx::Tiles tiles;
  const int64_t row_bytes = channels * static_cast<int64_t>(sizeof(bfloat16_bits));
  const bool lower = rows > kGroup;
  for (int64_t product = 0; product < products; ++product) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const bfloat16_bits* weight = right;
    for (int64_t channel = 0; channel < channels; channel += kDepth, weight += 2 * kTile) {
      if (!lower) {  // with more rows, the weights of the next product are still in the second-level cache
        prefetch_step(weight + right_distance);
      }
      _tile_loadd(4, left + channel, row_bytes);
      _tile_loadd(6, weight, amx::kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, weight + kTile, amx::kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (lower) {
        _tile_loadd(5, left + kGroup * channels + channel, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums, amx::kTileRowBytes);
    _tile_stored(1, sums + kPixels * kHalf, amx::kTileRowBytes);
    if (lower) {
      _tile_stored(2, sums + kGroup * kHalf, amx::kTileRowBytes);
      _tile_stored(3, sums + kPixels * kHalf + kGroup * kHalf, amx::kTileRowBytes);
    }
    left += left_distance;
    right += right_distance;
    sums += 2 * kPixels * kHalf;
  }
}

void convolve_strip_amx(
    const Arguments& a,
    Epilogue epilogue,
    const Window<bfloat16_bits>& window,
    const std::vector<Group>& groups,
    int64_t first_block,
    int64_t end_block) {
  switch (epilogue) {
    case Epilogue::glu:
      return convolve_strip<Epilogue::glu>(a, window, groups, first_block, end_block);
    case Epilogue::add:
      return convolve_strip<Epilogue::add>(a, window, groups, first_block, end_block);
    default:
      return convolve_strip<Epilogue::image>(a, window, groups, first_block, end_block);
  }
}

}  // namespace mirrorgan::convolution

MIRRORGAN_END_TARGET

#endif
