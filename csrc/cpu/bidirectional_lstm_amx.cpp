// The form of mirrorgan::bidirectional_lstm with AMX. Sixteen captions are the rows of a tile, and the four gates of
// sixteen units are four tiles of sums.

#include "bidirectional_lstm.h"

#if defined(MIRRORGAN_X86)

#include <algorithm>

#include "amx.h"
#include "workspace.h"

namespace mirrorgan::lstm {
namespace {

using amx::kDepth;
using amx::kTile;
using amx::kTileRowBytes;

static_assert(kCaptionsAmx == amx::kRows && kUnits == amx::kRows && kGates == 4);

constexpr int64_t kSums = kCaptionsAmx * kUnits;  // sums of a gate

MIRRORGAN_BEGIN_AMX

// Computes the sums of a group of units, (kGates, kCaptionsAmx, kUnits). Between the products it calls meanwhile(r) for
// every caption r: the processor's out-of-order window is too small to overlap both by itself.
template <typename Meanwhile>
MIRRORGAN_INLINE void multiply(
    const bfloat16_bits* hidden,
    const bfloat16_bits* weight,
    float* sums,
    int64_t units,
    int64_t captions,
    const Meanwhile& meanwhile) {
  const int64_t stride = units * static_cast<int64_t>(sizeof(bfloat16_bits)), block = units / kDepth * 2 * kTile;
  const int64_t products = units / kDepth * kGates;
  int64_t due = 0, caption = 0;
  const auto interleave = [&]() __attribute__((always_inline)) {
    for (due += captions; due >= products; due -= products) {
      amx::in_order();
      meanwhile(caption++);
      amx::in_order();
    }
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t unit = 0; unit < units; unit += kDepth, weight += 2 * kTile) {
    _tile_loadd(4, hidden + unit, stride);
    _tile_loadd(5, weight, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 5);
    interleave();
    _tile_loadd(6, weight + kTile, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 6);
    interleave();
    _tile_loadd(5, weight + block, kTileRowBytes);
    _tile_dpbf16ps(2, 4, 5);
    interleave();
    _tile_loadd(6, weight + block + kTile, kTileRowBytes);
    _tile_dpbf16ps(3, 4, 6);
    interleave();
  }
  _tile_stored(0, sums, kTileRowBytes);
  _tile_stored(1, sums + kSums, kTileRowBytes);
  _tile_stored(2, sums + 2 * kSums, kTileRowBytes);
  _tile_stored(3, sums + 3 * kSums, kTileRowBytes);
}

struct Functions {
  amx::Sigmoid sigmoid;
  __m512 middle = sigmoid(_mm512_setzero_ps());

  MIRRORGAN_INLINE Functions() {}

  // 2 sigmoid(2x) - 1 with an error of 3e-4. tanh(0) is exactly 0, so that padding units stay 0.
  MIRRORGAN_INLINE __m512 tanh(__m512 x) const {
    const __m512 s = _mm512_sub_ps(sigmoid(_mm512_add_ps(x, x)), middle);
    return _mm512_add_ps(s, s);
  }

  MIRRORGAN_INLINE void keep() {
    sigmoid.keep();
    amx::keep(middle);
  }
};

// Returns the states of sixteen units of a caption after a word, and updates their cells.
MIRRORGAN_INLINE __m512 update(const Functions& f, const float* sums, const float* gates, float* cell) {
  __m512 gate[kGates];
#pragma GCC unroll 4
  for (int i = 0; i < kGates; ++i) {
    gate[i] = _mm512_add_ps(_mm512_load_ps(sums + i * kSums), _mm512_loadu_ps(gates + i * kUnits));
  }
  const __m512 added = _mm512_mul_ps(f.sigmoid(gate[0]), f.tanh(gate[2]));
  const __m512 memory = _mm512_fmadd_ps(f.sigmoid(gate[1]), _mm512_load_ps(cell), added);
  _mm512_store_ps(cell, memory);
  return _mm512_mul_ps(f.sigmoid(gate[3]), f.tanh(memory));
}

// Prefetches the gates of sixteen units, which may be anywhere in a table that is larger than the caches.
MIRRORGAN_INLINE void prefetch(const float* gates) {
#pragma GCC unroll 4
  for (int i = 0; i < kGates; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(gates + i * kUnits), _MM_HINT_T1);
  }
}

void read(
    const Arguments& a,
    int64_t first,
    int64_t count,
    int64_t direction,
    bfloat16_bits* hidden,
    bfloat16_bits* next,
    float* cells) {
  const amx::Tiles tiles;
  const int64_t groups = a.units / kUnits, panel = a.units * kGates * kUnits;
  const auto* weight = static_cast<const bfloat16_bits*>(a.recurrent) + direction * groups * panel;
  const int64_t max_length = a.max_length(first, count);
  alignas(64) float sums[2][kGates * kSums];
  Functions functions;
  functions.keep();
  for (int64_t step = 0; step < max_length; ++step) {
    amx::in_order();  // the states are stored before they are loaded as tiles
    const auto finish = [&](int64_t group, int64_t r) {
      const int64_t sample = first + r, unit = group * kUnits;
      if (step >= a.lengths[sample]) {
        return;
      }
      const int64_t word = a.word(sample, step, direction);
      if (step + 1 < a.lengths[sample]) {
        prefetch(a.gates_of(a.word(sample, step + 1, direction), direction, unit));
      }
      const __m512 state = update(functions, sums[group % 2] + r * kUnits, a.gates_of(word, direction, unit),
                                  cells + r * a.units + unit);
      _mm512_storeu_ps(a.states_of(word, direction, unit), state);
      _mm256_store_si256(reinterpret_cast<__m256i*>(next + r * a.units + unit), (__m256i)_mm512_cvtneps_pbh(state));
      if (step == a.lengths[sample] - 1) {
        _mm512_storeu_ps(a.last_of(sample, direction, unit), state);
      }
    };
    // A group is multiplied while the previous one is finished.
    multiply(hidden, weight, sums[0], a.units, 0, [](int64_t) {});
    for (int64_t group = 1; group < groups; ++group) {
      multiply(hidden, weight + group * panel, sums[group % 2], a.units, count,
               [&](int64_t r) { finish(group - 1, r); });
    }
    for (int64_t r = 0; r < count; ++r) {
      finish(groups - 1, r);
    }
    std::swap(hidden, next);
  }
}

MIRRORGAN_END_TARGET

}  // namespace

void read_captions_amx(const Arguments& a, int64_t first, int64_t count, int64_t direction) {
  static thread_local Workspace<bfloat16_bits> states;
  static thread_local Workspace<float> memory;
  const int64_t size = kCaptionsAmx * a.units;
  bfloat16_bits* hidden = states.at_least(2 * size);
  float* cells = memory.at_least(size);
  std::fill_n(hidden, 2 * size, bfloat16_bits{0});
  std::fill_n(cells, size, 0.0f);
  read(a, first, count, direction, hidden, hidden + size, cells);
}

}  // namespace mirrorgan::lstm

#endif
