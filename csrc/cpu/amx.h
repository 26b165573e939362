// What the kernels with AMX tiles share. Every include stands before the target: what the library's templates are compiled
// to must run everywhere.

#pragma once

#include "instruction_sets.h"

#if defined(MIRRORGAN_X86)

#include "intrinsics.h"

#include <cstdint>

#include "vectors.h"

// Functions between these two are compiled for AMX.
#if defined(__clang__)
#define MIRRORGAN_BEGIN_AMX                                                                                     \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile," \
          "amx-bf16\"))), apply_to = function)")
#define MIRRORGAN_END_AMX _Pragma("clang attribute pop")
#else
#define MIRRORGAN_BEGIN_AMX        \
  _Pragma("GCC push_options")      \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16\")")
#define MIRRORGAN_END_AMX _Pragma("GCC pop_options")
#endif

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
    return _mm512_scalef_ps(of_rest(x), x);  // which takes the whole number below x
  }

  // 2^r alone.
  MIRRORGAN_INLINE __m512 of_rest(__m512 x) const {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 series = _mm512_fmadd_ps(factors[3], r, factors[2]);
    series = _mm512_fmadd_ps(series, r, factors[1]);
    return _mm512_fmadd_ps(series, r, factors[0]);
  }
};

constexpr float kLogOfE = 1.44269504f;  // to the base of two

// 1 / (1 + e^-x) within 2e-4 of its value; NaN stays NaN.
struct Sigmoid {
  PowerOfTwo power_of_two;
  __m512 scale = _mm512_set1_ps(-kLogOfE), furthest = _mm512_set1_ps(100.0f), one = _mm512_set1_ps(1.0f);

  MIRRORGAN_INLINE Sigmoid() {}

  MIRRORGAN_INLINE __m512 operator()(__m512 x) const {
    return of_exponent(_mm512_mul_ps(x, scale));
  }

  // 1 / (1 + 2^exponent), the exponent being x scale.
  MIRRORGAN_INLINE __m512 of_exponent(__m512 exponent) const {
    constexpr int kSmallerOne = 2;  // of both without their signs, with the first one's sign
    const __m512 inside = _mm512_range_ps(exponent, furthest, kSmallerOne);
    const __m512 power = _mm512_scalef_ps(power_of_two.of_rest(exponent), inside);
    return _mm512_rcp14_ps(_mm512_add_ps(power, one));
  }

  MIRRORGAN_INLINE void keep() {
    for (__m512& factor : power_of_two.factors) {
      amx::keep(factor);
    }
    amx::keep(scale);
    amx::keep(furthest);
    amx::keep(one);
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

MIRRORGAN_END_AMX

#endif
