// How the kernels are written: for a block whose warps do one step after the other, in lanes that are counted, so that
// the same code runs on a GPU, where a thread is one lane of one warp, and on the host, in a test, where one thread is
// all of them.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MIRRORGAN_DEVICE __device__ __forceinline__
#else
#define MIRRORGAN_DEVICE inline
#endif

namespace mirrorgan::cuda {

constexpr int kLanesOfWarp = 32;

// Eight bfloat16, which are read and written at once.
struct alignas(16) Eight {
  uint16_t values[8];
};

// On the host: whether Eights may be read and written from there on.
inline bool begins_an_eight(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Eight) == 0;
}

MIRRORGAN_DEVICE float as_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
#if defined(__CUDACC__)
  return __uint_as_float(wide);
#else
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
#endif
}

// Rounded to the nearest, half to even; NaN stays one.
MIRRORGAN_DEVICE uint16_t as_bfloat16(float value) {
#if defined(__CUDACC__)
  const uint32_t wide = __float_as_uint(value);
#else
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
#endif
  if ((wide & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(wide >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
}

MIRRORGAN_DEVICE uint32_t pair_of(uint16_t low, uint16_t high) {
  return static_cast<uint32_t>(high) << 16 | low;
}

// Eight values of a row, of which `valid` exist; the others are zero.
MIRRORGAN_DEVICE Eight read_eight(const uint16_t* row, int valid, bool aligned) {
  Eight eight{};
  if (aligned && valid >= 8) {
    return *reinterpret_cast<const Eight*>(row);
  }
  for (int i = 0; i < 8; ++i) {
    if (i < valid) {
      eight.values[i] = row[i];
    }
  }
  return eight;
}

MIRRORGAN_DEVICE void write_eight(uint16_t* row, const Eight& eight, int valid, bool aligned) {
  if (aligned && valid >= 8) {
    *reinterpret_cast<Eight*>(row) = eight;
    return;
  }
  for (int i = 0; i < 8; ++i) {
    if (i < valid) {
      row[i] = eight.values[i];
    }
  }
}

// The operands of one product of tiles, D (16 x 8) += A (16 x 16) B (16 x 8), as each lane holds them (PTX ISA, mma.sync
// m16n8k16). With g = lane / 4 and t = lane % 4 these are of A the rows g and g + 8 at the columns 2t, 2t + 1 and
// 2t + 8, 2t + 9; of B the column g at those rows; of D the rows g and g + 8 at the columns 2t and 2t + 1.
struct TileA {
  uint32_t pairs[4];
};
struct TileB {
  uint32_t pairs[2];
};
struct TileD {
  float values[4];
};

#if defined(__CUDACC__)

// One thread: a lane of a warp.
struct Device {
  template <typename T>
  struct Lanes {
    T value;
    MIRRORGAN_DEVICE T& operator[](int) { return value; }
  };
  template <typename T>
  using Warps = Lanes<T>;

  MIRRORGAN_DEVICE static int first_lane() { return static_cast<int>(threadIdx.x) % kLanesOfWarp; }
  MIRRORGAN_DEVICE static int end_lane() { return first_lane() + 1; }

  // A step: every warp does it, and all have done it before the next begins.
  template <int kWarps, typename Work>
  MIRRORGAN_DEVICE static void step(const Work& work) {
    work(static_cast<int>(threadIdx.x) / kLanesOfWarp);
    __syncthreads();
  }

  MIRRORGAN_DEVICE static void multiply(Lanes<TileD>& d, Lanes<TileA>& a, Lanes<TileB>& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d.value.values[0]), "+f"(d.value.values[1]), "+f"(d.value.values[2]), "+f"(d.value.values[3])
        : "r"(a.value.pairs[0]), "r"(a.value.pairs[1]), "r"(a.value.pairs[2]), "r"(a.value.pairs[3]),
          "r"(b.value.pairs[0]), "r"(b.value.pairs[1]));
  }

  // What the lane holds whose number differs in these bits.
  MIRRORGAN_DEVICE static Lanes<float> exchange(const Lanes<float>& values, int bits) {
    return {__shfl_xor_sync(0xffffffffu, values.value, bits)};
  }

  MIRRORGAN_DEVICE static float exp(float x) { return __expf(x); }
};

#endif

// The sigmoid on either machine.
template <typename Machine>
MIRRORGAN_DEVICE float sigmoid(float x) {
  return 1.0f / (1.0f + Machine::exp(-x));
}

}  // namespace mirrorgan::cuda
