// What the kernels with AMX tiles share. Every include stands before the target: what the library's templates are compiled
// to must run everywhere.

#pragma once

#include "instruction_sets.h"

#if defined(MIRRORGAN_X86)

#include "intrinsics.h"

#include <cmath>
#include <cstdint>

#include "vectors.h"

#if defined(MIRRORGAN_EMULATED_TILES)
#include "emulated_tiles.h"
#endif

#define MIRRORGAN_BEGIN_AMX \
  MIRRORGAN_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")

namespace mirrorgan::amx {

// What approaches a sigmoid: a parabola around every whole number of x kScale. (While tiles are in use, one of the vector
// unit's two ports neither multiplies nor compares floats, but it adds them and it looks up.)
struct alignas(64) SigmoidParabolas {
  static constexpr float kScale = 1.7f, kFurthest = 15.49f;

  float factors[3][32];  // of 1, x and x^2, that of the whole number n at n modulo 32

  SigmoidParabolas() {
    const double node = std::sqrt(3.0) / 4;  // they meet the sigmoid where Chebyshev's polynomial of third degree is 0
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x / kScale)); };
    for (int n = -15; n <= 15; ++n) {
      const double before = sigmoid(n - node), at = sigmoid(n), after = sigmoid(n + node);
      const double slope = (after - before) / (2 * node), curve = (before - 2 * at + after) / (2 * node * node);
      factors[0][n & 31] = static_cast<float>(at - (slope - curve * n) * n);
      factors[1][n & 31] = static_cast<float>(slope - 2 * curve * n);
      factors[2][n & 31] = static_cast<float>(curve);
    }
  }
};
inline const SigmoidParabolas kSigmoidParabolas;

}  // namespace mirrorgan::amx

MIRRORGAN_BEGIN_AMX

namespace mirrorgan::amx {

constexpr int64_t kRows = 16;             // of a tile
constexpr int64_t kDepth = 32;            // bfloat16 in a row of a left tile: what one product sums over
constexpr int64_t kTile = kDepth * 16;    // bfloat16 in a tile
constexpr int64_t kTileRowBytes = 64;

// All eight tiles are full. (A constant: GCC drops what is written to a local one, whose reading it does not see.)
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileShapes kTileShapes;

// The tiles are this thread's from here to the end of the scope.
class Tiles {
 public:
  MIRRORGAN_INLINE Tiles() {
    _tile_loadconfig(&kTileShapes);
  }
  MIRRORGAN_INLINE ~Tiles() {
    _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// What stands before is done before. (GCC does not know that a tile is loaded from memory.)
MIRRORGAN_INLINE void in_order() {
  __asm__ volatile("" ::: "memory");
}

// Have a constant in a register. (GCC may load it wherever it is used, if it is used in many places of a loop.)
MIRRORGAN_INLINE void keep(__m512& constant) {
  __asm__("" : "+v"(constant));
}

// 2^x within 8e-5 of its value: a twenty-fifth of what rounding to bfloat16 loses. 2^n 2^r with 0 <= r < 1, and 2^r by its
// best cubic. Below -100 it is 2^-100: results that are no normal numbers would make every sum of them several times slower.
struct PowerOfTwo {
  __m512 lowest = _mm512_set1_ps(-100.0f);
  __m512 factors[4] = {
      _mm512_set1_ps(0.99992522f), _mm512_set1_ps(0.69583354f), _mm512_set1_ps(0.22606716f), _mm512_set1_ps(0.07802452f)};

  MIRRORGAN_INLINE PowerOfTwo() {}  // (One that the compiler adds would not be for this target.)

  MIRRORGAN_INLINE __m512 operator()(__m512 x) const {
    x = _mm512_max_ps(lowest, x);  // in this order NaN stays NaN
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 series = _mm512_fmadd_ps(factors[3], r, factors[2]);
    series = _mm512_fmadd_ps(series, r, factors[1]);
    series = _mm512_fmadd_ps(series, r, factors[0]);
    return _mm512_scalef_ps(series, x);  // which takes the whole number below x
  }
};

constexpr float kLogOfE = 1.44269504f;  // to the base of two

// 1 / (1 + e^-x) within 1.4e-4 of its value; NaN stays NaN.
struct Sigmoid {
  static constexpr float kScale = SigmoidParabolas::kScale;

  __m512 low[3], high[3];  // the parabolas' factors
  __m512 lowest = _mm512_set1_ps(-SigmoidParabolas::kFurthest), highest = _mm512_set1_ps(SigmoidParabolas::kFurthest);
  __m512 whole = _mm512_set1_ps(12582912.0f);  // 1.5 2^23: a sum with it is rounded to a whole number, its lowest bits

  MIRRORGAN_INLINE Sigmoid() {
    for (int i = 0; i < 3; ++i) {
      low[i] = _mm512_load_ps(kSigmoidParabolas.factors[i]);
      high[i] = _mm512_load_ps(kSigmoidParabolas.factors[i] + 16);
    }
  }

  MIRRORGAN_INLINE __m512 operator()(__m512 x) const {
    return of_scaled(_mm512_mul_ps(x, _mm512_set1_ps(kScale)));
  }

  // The sigmoid of x / kScale.
  MIRRORGAN_INLINE __m512 of_scaled(__m512 x) const {
    x = _mm512_max_ps(lowest, _mm512_min_ps(highest, x));  // in this order NaN stays NaN
    const __m512i parabola = _mm512_castps_si512(_mm512_add_ps(x, whole));
    const __m512 curve = _mm512_permutex2var_ps(low[2], parabola, high[2]);
    const __m512 slope = _mm512_permutex2var_ps(low[1], parabola, high[1]);
    return _mm512_fmadd_ps(_mm512_fmadd_ps(curve, x, slope), x, _mm512_permutex2var_ps(low[0], parabola, high[0]));
  }

  MIRRORGAN_INLINE void keep() {
    for (int i = 0; i < 3; ++i) {
      amx::keep(low[i]);
      amx::keep(high[i]);
    }
    amx::keep(lowest);
    amx::keep(highest);
    amx::keep(whole);
  }
};

// Sixteen grey levels of images that tanh(x) are: (1 + tanh x) 127.5 is 255 sigmoid(2x). What is no number becomes 0.
MIRRORGAN_INLINE __m128i grey_levels(__m512 x) {
  const __m512 level = _mm512_mul_ps(Sigmoid()(_mm512_add_ps(x, x)), _mm512_set1_ps(255.0f));
  return _mm512_cvtusepi32_epi8(_mm512_maskz_cvtps_epu32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), level));
}

MIRRORGAN_INLINE __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Lanes [0, count) of 16, or of 32.
MIRRORGAN_INLINE __mmask16 first_of(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

MIRRORGAN_INLINE __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : static_cast<__mmask32>((1u << count) - 1);
}

}  // namespace mirrorgan::amx

MIRRORGAN_END_TARGET

#endif
