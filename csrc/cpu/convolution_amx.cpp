// The part of the engine that multiplies with AMX: tiles of 16 x 32 bfloat16, sums of 16 x 16 float32.

#include "convolution.h"

#if defined(MIRRORGAN_X86)

#include "amx.h"

MIRRORGAN_BEGIN_AMX

namespace mirrorgan::convolution {
namespace {

static_assert(kGroup == amx::kRows && kDepth == amx::kDepth && kTile == amx::kTile);

struct Biases {
  __m512 first, second;
};

constexpr int64_t kTogether = 4;  // rows that are finished one right after the other
constexpr int64_t kBlockRows = 2 * kGroup;
constexpr int64_t kStepsAhead = 16;  // 32 KiB: as far ahead weights are called that come from beyond the second-level cache

MIRRORGAN_INLINE void prefetch_step(const bfloat16_bits* weight) {
  constexpr int64_t kLine = 32;  // bfloat16
#pragma GCC unroll 32
  for (int64_t i = 0; i < 2 * kTile; i += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(weight + i), _MM_HINT_T1);
  }
}

// What is left to do with a block's sums, while the next block is multiplied.
struct Pending {
  const float* sums = nullptr;
  Cursor cursors[2] = {};
  int64_t counts[2] = {};
  int64_t channel = 0;  // of the result, the first half's first
  Biases biases = {};
  int64_t row = kBlockRows;  // next to be written
};

// One pixel: `at` is where it goes, `left` how many channels there are from there on.
template <Epilogue epilogue>
MIRRORGAN_INLINE void write_pixel(const Arguments& a, const float* sums, const Biases& biases, int64_t at, int64_t left) {
  const __m512 first = _mm512_add_ps(_mm512_load_ps(sums), biases.first);
  const __m512 second = _mm512_add_ps(_mm512_load_ps(sums + kPixels * kHalf), biases.second);
  if constexpr (epilogue == Epilogue::glu) {
    const __m512 value = _mm512_mul_ps(first, amx::sigmoid(second));
    _mm256_mask_storeu_epi16(static_cast<bfloat16_bits*>(a.out) + at, amx::first_of(left),
                             (__m256i)_mm512_cvtneps_pbh(value));
  } else if constexpr (epilogue == Epilogue::add) {
    auto* out = static_cast<bfloat16_bits*>(a.out) + at;
    const __mmask16 low = amx::first_of(left), high = amx::first_of(left - kHalf);
    __m512 add_low = _mm512_setzero_ps(), add_high = add_low;
    if (a.residual != nullptr) {
      const auto* residual = static_cast<const bfloat16_bits*>(a.residual) + at;
      add_low = amx::widen(_mm256_maskz_loadu_epi16(low, residual));
      add_high = amx::widen(_mm256_maskz_loadu_epi16(high, residual + kHalf));
    }
    _mm256_mask_storeu_epi16(out, low, (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(first, add_low)));
    _mm256_mask_storeu_epi16(out + kHalf, high, (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(second, add_high)));
  } else {
    _mm_mask_storeu_epi8(static_cast<uint8_t*>(a.out) + at, amx::first_of(left), amx::grey_levels(first));
  }
}

// The next kTogether rows of a block, which are of one group.
template <Epilogue epilogue>
MIRRORGAN_INLINE void write_rows(const Arguments& a, Pending& pending) {
  const int64_t group = pending.row / kGroup, row = pending.row % kGroup;
  const float* sums = pending.sums + pending.row * kHalf;
  const int64_t left = a.out_channels - pending.channel, count = pending.counts[group] - row;
  const Biases biases = pending.biases;
  Cursor cursor = pending.cursors[group];
  pending.row += kTogether;
  if (count >= kTogether && cursor.column + kTogether <= cursor.width) {
    const int64_t at = cursor.at + pending.channel, step = cursor.step;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kTogether; ++i) {
      write_pixel<epilogue>(a, sums + i * kHalf, biases, at + i * step, left);
    }
    cursor.at += kTogether * step;
    cursor.column += kTogether;
    if (cursor.column == cursor.width) {
      cursor.column = 0;
      cursor.at += cursor.jump;
    }
  } else {
    for (int64_t i = 0; i < kTogether && i < count; ++i, cursor.advance()) {
      write_pixel<epilogue>(a, sums + i * kHalf, biases, cursor.at + pending.channel, left);
    }
  }
  pending.cursors[group] = cursor;
}

template <Epilogue epilogue>
void convolve_strip(
    const Arguments& a,
    const Window<bfloat16_bits>& window,
    const int64_t* offsets,
    const Group* groups,
    int64_t group_count,
    int64_t first_row,
    const Phase& phase,
    int64_t first_block,
    int64_t end_block) {
  const amx::Tiles tiles;
  alignas(64) float sums[2][2 * kPixels * kHalf];
  alignas(64) float bias[kColumns];
  const int64_t pixel_bytes = window.channels * static_cast<int64_t>(sizeof(bfloat16_bits));
  // All of a block's rows are finished during the next block's steps.
  const int64_t a_turn = kBlockRows / kTogether, turns_a_step = (a_turn + a.steps - 1) / a.steps;
  const bool once = group_count <= 2;  // each weight is read
  Pending pending;
  int which = 0;
  for (int64_t block = first_block; block < end_block; ++block) {
    const auto* panel =
        static_cast<const bfloat16_bits*>(a.weight) + (phase.index * a.blocks + block) * a.steps * 2 * kTile;
    read_bias(a, epilogue, block, bias);
    const Biases biases{_mm512_load_ps(bias), _mm512_load_ps(bias + kHalf)};
    for (int64_t g = 0; g < group_count; g += 2) {
      const Group& upper = groups[g];
      const Group& lower = groups[g + 1 < group_count ? g + 1 : g];
      const bfloat16_bits* weight = panel;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const bfloat16_bits* upper_pixels = window.taps[0] + upper.offset * window.channels;
      const bfloat16_bits* lower_pixels = window.taps[0] + lower.offset * window.channels;
      for (int64_t step = 0; step < a.steps; ++step) {
        if (once) {
          prefetch_step(weight + kStepsAhead * 2 * kTile);
        }
        _tile_loadd(4, upper_pixels + offsets[step], pixel_bytes);
        _tile_loadd(6, weight, amx::kTileRowBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight + kTile, amx::kTileRowBytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower_pixels + offsets[step], pixel_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        weight += 2 * kTile;
        // The unit multiplies on its own: meanwhile the last block is finished.
        for (int64_t i = 0; i < turns_a_step && pending.row < kBlockRows; ++i) {
          write_rows<epilogue>(a, pending);
        }
      }
      float* target = sums[which];
      which ^= 1;
      _tile_stored(0, target, amx::kTileRowBytes);
      _tile_stored(1, target + kPixels * kHalf, amx::kTileRowBytes);
      _tile_stored(2, target + kGroup * kHalf, amx::kTileRowBytes);
      _tile_stored(3, target + kPixels * kHalf + kGroup * kHalf, amx::kTileRowBytes);
      pending.sums = target;
      pending.cursors[0] = cursor_of(a, first_row, upper, phase);
      pending.cursors[1] = cursor_of(a, first_row, lower, phase);
      pending.counts[0] = upper.count;
      pending.counts[1] = g + 1 < group_count ? lower.count : 0;
      pending.channel = block * (epilogue == Epilogue::glu ? kHalf : kColumns);
      pending.biases = biases;
      pending.row = 0;
    }
  }
  while (pending.row < kBlockRows) {
    write_rows<epilogue>(a, pending);
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
      if (!lower) {  // or the weights of the next product stay in the second-level cache from group to group
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

ConvolveStrip<bfloat16_bits> convolve_strip_amx(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::glu:
      return convolve_strip<Epilogue::glu>;
    case Epilogue::add:
      return convolve_strip<Epilogue::add>;
    default:
      return convolve_strip<Epilogue::image>;
  }
}

}  // namespace mirrorgan::convolution

MIRRORGAN_END_AMX

#endif
