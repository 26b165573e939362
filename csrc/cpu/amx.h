// What the kernels with AMX tiles share. All includes come before the target pragma, so that the standard library's
// templates are compiled for every processor.

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

// An approximation of the sigmoid: one parabola around every integer n near x kScale. It was chosen because, while
// tiles are in use, one of the two vector ports cannot multiply or compare floats, but it can add them and permute
// (look up) them.
struct alignas(64) SigmoidParabolas {
  static constexpr float kScale = 1.7f, kLimit = 15.49f;

  float factors[3][32];  // coefficients of 1, x and x^2; those of the integer n are at index n modulo 32

  SigmoidParabolas() {
    // A parabola equals the sigmoid at the zeros of the Chebyshev polynomial of degree three.
    const double node = std::sqrt(3.0) / 4;
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

constexpr int64_t kRows = 16;           // rows of a tile
constexpr int64_t kDepth = 32;          // bfloat16 in a row of a left tile: one product sums over them
constexpr int64_t kTile = kDepth * 16;  // bfloat16 in a tile
constexpr int64_t kTileRowBytes = 64;

// All eight tiles have the maximum size. This is a constant, because GCC removes the stores to a local variable: it
// does not see that the instruction reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileShapes kTileShapes;

// This thread may use the tiles until the end of the scope.
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

// A compiler barrier for memory accesses. GCC does not know that a tile load reads memory.
MIRRORGAN_INLINE void in_order() {
  __asm__ volatile("" ::: "memory");
}

// Keeps a constant in a register. Otherwise GCC may load it at each of its uses in a loop.
MIRRORGAN_INLINE void keep(__m512& constant) {
  __asm__("" : "+v"(constant));
}

// 2^x with a relative error of 8e-5, which is 1/25 of the rounding error of bfloat16: 2^n 2^r with 0 <= r < 1, and the best
// cubic polynomial for 2^r. For x < -100 the result is 2^-100, as sums of subnormal numbers would be several times slower.
struct PowerOfTwo {
  __m512 lowest = _mm512_set1_ps(-100.0f);
  __m512 factors[4] = {
      _mm512_set1_ps(0.99992522f), _mm512_set1_ps(0.69583354f), _mm512_set1_ps(0.22606716f), _mm512_set1_ps(0.07802452f)};

  MIRRORGAN_INLINE PowerOfTwo() {}  // an implicit constructor would not have this target

  MIRRORGAN_INLINE __m512 operator()(__m512 x) const {
    x = _mm512_max_ps(lowest, x);  // with the arguments in this order NaN stays NaN
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 series = _mm512_fmadd_ps(factors[3], r, factors[2]);
    series = _mm512_fmadd_ps(series, r, factors[1]);
    series = _mm512_fmadd_ps(series, r, factors[0]);
    return _mm512_scalef_ps(series, x);  // scalef rounds x down to an integer
  }
};

constexpr float kLogOfE = 1.44269504f;  // log2(e)

// 1 / (1 + e^-x) with an error of 1.4e-4; NaN stays NaN.
struct Sigmoid {
  static constexpr float kScale = SigmoidParabolas::kScale;

  __m512 low[3], high[3];  // the coefficients of the parabolas
  __m512 lowest = _mm512_set1_ps(-SigmoidParabolas::kLimit), highest = _mm512_set1_ps(SigmoidParabolas::kLimit);
  __m512 whole = _mm512_set1_ps(12582912.0f);  // 1.5 2^23: adding it rounds to an integer, which is in the lowest bits

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
    x = _mm512_max_ps(lowest, _mm512_min_ps(highest, x));  // with the arguments in this order NaN stays NaN
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

// Sixteen gray levels of an image tanh(x): (1 + tanh x) 127.5 = 255 sigmoid(2x). NaN becomes 0.
MIRRORGAN_INLINE __m128i gray_levels(__m512 x) {
  const __m512 level = _mm512_mul_ps(Sigmoid()(_mm512_add_ps(x, x)), _mm512_set1_ps(255.0f));
  return _mm512_cvtusepi32_epi8(_mm512_maskz_cvtps_epu32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), level));
}

MIRRORGAN_INLINE __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// A mask of the lanes [0, count) of 16, or of 32 below.
MIRRORGAN_INLINE __mmask16 first_of(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

MIRRORGAN_INLINE __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : static_cast<__mmask32>((1u << count) - 1);
}

}  // namespace mirrorgan::amx

MIRRORGAN_END_TARGET

#endif
