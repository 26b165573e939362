// Products of bfloat16 in pairs, with the AVX-512 instruction that adds two of them to a float32.

#include "convolution.h"

#if defined(MIRRORGAN_X86)

#include "intrinsics.h"

#include <cstring>

MIRRORGAN_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace mirrorgan::convolution {
namespace {

template <int Halves>
inline void multiply(
    const Window<bfloat16_bits>& window,
    int64_t offset,
    const Phase& phase,
    const bfloat16_bits* weight,
    float* sums) {
  __m512 total[kPairRows][Halves];
  for (int r = 0; r < kPairRows; ++r) {
    for (int h = 0; h < Halves; ++h) {
      total[r][h] = _mm512_setzero_ps();
    }
  }
  for (int64_t tap = 0; tap < phase.taps; ++tap) {
    const bfloat16_bits* pixel = window.at(offset, phase.dy[tap], phase.dx[tap]);
    for (int64_t channel = 0; channel < window.channels; channel += kDepth, weight += 2 * kTile) {
      for (int64_t pair = 0; pair < kDepth; pair += 2) {
        __m512bh columns[Halves];
#pragma GCC unroll 2
        for (int h = 0; h < Halves; ++h) {
          columns[h] = (__m512bh)_mm512_loadu_si512(weight + h * kTile + pair * kHalf);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kPairRows; ++r) {
          int32_t both;
          std::memcpy(&both, pixel + r * window.channels + channel + pair, sizeof both);
          const __m512bh values = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 2
          for (int h = 0; h < Halves; ++h) {
            total[r][h] = _mm512_dpbf16_ps(total[r][h], values, columns[h]);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kPairRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      _mm512_storeu_ps(sums + (h * kPixels + r) * kHalf, total[r][h]);
    }
  }
}

}  // namespace

void multiply_pairs(
    const Window<bfloat16_bits>& window,
    int64_t offset,
    const Phase& phase,
    const bfloat16_bits* weight,
    int halves,
    float* sums) {
  if (halves == 1) {
    multiply<1>(window, offset, phase, weight, sums);
  } else {
    multiply<2>(window, offset, phase, weight, sums);
  }
}

}  // namespace mirrorgan::convolution

MIRRORGAN_END_TARGET

#endif
