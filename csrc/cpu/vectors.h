// Vectors of float32 lanes (a compiler extension), and their loads and stores in float32 and bfloat16.

#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace mirrorgan {

using bfloat16_bits = uint16_t;

MIRRORGAN_INLINE float to_float(float value) {
  return value;
}

MIRRORGAN_INLINE float to_float(bfloat16_bits bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

MIRRORGAN_INLINE void store(float value, float* out) {
  *out = value;
}

// Rounds to nearest, ties to even. Any NaN becomes the quiet NaN.
MIRRORGAN_INLINE void store(float value, bfloat16_bits* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *out = static_cast<bfloat16_bits>(value != value ? 0x7fc0u : rounded);
}

template <int Lanes>
struct Vector {
  // With an alignment of four bytes every load and store is an unaligned one. On aligned data that costs nothing.
  typedef float Float __attribute__((vector_size(Lanes * 4), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(Lanes * 4), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(Lanes * 4), aligned(4), may_alias));
  typedef uint16_t Halves __attribute__((vector_size(Lanes * 2), aligned(2), may_alias));
};

// The result is a reference because returning a vector wider than the baseline's registers has no stable ABI.
template <int Lanes>
MIRRORGAN_INLINE void load(const float* source, typename Vector<Lanes>::Float& out) {
  out = *reinterpret_cast<const typename Vector<Lanes>::Float*>(source);
}

template <int Lanes>
MIRRORGAN_INLINE void load(const bfloat16_bits* source, typename Vector<Lanes>::Float& out) {
  const auto halves = *reinterpret_cast<const typename Vector<Lanes>::Halves*>(source);
  out = (typename Vector<Lanes>::Float)(__builtin_convertvector(halves, typename Vector<Lanes>::Bits) << 16);
}

template <int Lanes>
MIRRORGAN_INLINE void store(const typename Vector<Lanes>::Float& value, float* out) {
  *reinterpret_cast<typename Vector<Lanes>::Float*>(out) = value;
}

template <int Lanes>
MIRRORGAN_INLINE void store(const typename Vector<Lanes>::Float& value, bfloat16_bits* out) {
  using Bits = typename Vector<Lanes>::Bits;
  const Bits bits = (Bits)value;
  Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = value != value ? 0x7fc0u + Bits{} : rounded;
  *reinterpret_cast<typename Vector<Lanes>::Halves*>(out) =
      __builtin_convertvector(rounded, typename Vector<Lanes>::Halves);
}

// Replaces x <= 0 by e^x, within 2 ulp; NaN stays NaN. With x = n ln 2 + r and |r| <= ln(2)/2, the Taylor series of e^r up
// to r^7 has a relative error of 5e-9.
template <int Lanes>
MIRRORGAN_INLINE void exp_of_negative(typename Vector<Lanes>::Float& x) {
  using Float = typename Vector<Lanes>::Float;
  using Int = typename Vector<Lanes>::Int;
  constexpr float kLowest = -87.0f;        // e^-87 is still a normal number
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  x = x < kLowest ? kLowest - Float{} : x;
  const Float shifted = x * 1.44269504f + kRounder;
  const Float n = shifted - kRounder;
  Float r = x - n * 0.693359375f;  // ln 2 in two parts, of which the first is exact in 9 bits
  r = r + n * 2.12194440e-4f;
  Float series = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
  series = series * r + (1.0f / 120.0f);
  series = series * r + (1.0f / 24.0f);
  series = series * r + (1.0f / 6.0f);
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const Int power_bits = ((Int)shifted + (127 - 0x4b400000)) << 23;
  x = series * (Float)power_bits;
}

// s = 1 / (1 + e^-x), and rest = 1 - s without cancellation.
template <int Lanes>
MIRRORGAN_INLINE void sigmoid(
    const typename Vector<Lanes>::Float& x, typename Vector<Lanes>::Float& s, typename Vector<Lanes>::Float& rest) {
  using Float = typename Vector<Lanes>::Float;
  Float small = x < 0.0f ? x : -x;
  exp_of_negative<Lanes>(small);
  const Float large = 1.0f / (1.0f + small);
  small *= large;
  s = x < 0.0f ? small : large;
  rest = x < 0.0f ? large : small;
}

}  // namespace mirrorgan
