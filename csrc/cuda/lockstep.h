// The kernels are written for a block whose warps do one step after the other, with explicit loops over the lanes of a
// warp. So the same code runs on a GPU, where a thread is one lane of one warp, and in a test on the host, where one
// thread is all lanes of all warps. `Machine` is the type that differs: Device below, and Host in
// tests/ops/cuda_on_host.cpp.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MIRRORGAN_DEVICE __device__ __forceinline__
#define MIRRORGAN_BOTH __host__ __device__ __forceinline__
#else
#define MIRRORGAN_DEVICE inline
#define MIRRORGAN_BOTH inline
#endif

namespace mirrorgan::cuda {

constexpr int kLanesOfWarp = 32;

// Eight bfloat16 that are read or written with one instruction.
struct alignas(16) Eight {
  uint16_t values[8];
};

// The same as four pairs.
struct alignas(16) Pairs {
  uint32_t values[4];
};

// Whether Eights may be read and written at this address. For the host.
inline bool is_aligned(const void* pointer) {
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

// Rounds to nearest, ties to even; NaN stays NaN.
MIRRORGAN_DEVICE uint16_t as_bfloat16(float value) {
#if defined(__CUDACC__)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  if ((wide & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(wide >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
#endif
}

MIRRORGAN_DEVICE uint32_t pair_of(uint16_t low, uint16_t high) {
  return static_cast<uint32_t>(high) << 16 | low;
}

// Reads eight values of a row, of which `valid` exist; the others are zero.
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

// A lane's part of the operands of one product of tiles, D (16 x 8) += A (16 x 16) B (16 x 8) (PTX ISA, mma.sync
// m16n8k16). With g = lane / 4 and t = lane % 4, a lane holds: of A the rows g and g + 8 at the columns 2t, 2t + 1, 2t
// + 8 and 2t + 9; of B the column g at the rows 2t, 2t + 1, 2t + 8 and 2t + 9; of D the rows g and g + 8 at the columns
// 2t and 2t + 1.
struct TileA {
  uint32_t pairs[4];
};
struct TileB {
  uint32_t pairs[2];
};
struct TileD {
  float values[4];
};

// A lane's part of D in a product of a group of four warps on Hopper, D (64 x 64) += A (64 x 16) B (16 x 64) (PTX ISA,
// wgmma m64n64k16). Warp w has the rows of D from 16w on. For each eight columns, a lane holds the same elements as of
// a TileD.
struct GroupD {
  float values[32];
};
constexpr int kColumnsOfGroup = 64;
constexpr int kDepthOfGroup = 16;

// A, or the transposed B, of such a product in shared memory without a swizzle. It consists of Eights of one row each; the
// Eights of eight rows follow each other. All numbers are in bytes and multiples of 16.
template <typename Address>
struct MatrixAt {
  Address begin;
  uint32_t leading;  // from the first Eight of a row to the second
  uint32_t stride;   // from eight rows to the next eight rows
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

  template <typename Work>
  MIRRORGAN_DEVICE static void lanes(const Work& work) {
    work(first_lane());
  }

  // A step that every warp does. All warps have done it before the next step starts.
  template <int kWarps, typename Work>
  MIRRORGAN_DEVICE static void step(const Work& work) {
    work(static_cast<int>(threadIdx.x) / kLanesOfWarp);
    __syncthreads();
  }

  // Work that every warp of a group of four does, without waiting for the others.
  template <typename Work>
  MIRRORGAN_DEVICE static void group(const Work& work) {
    work(static_cast<int>(threadIdx.x) / kLanesOfWarp % 4);
  }

  MIRRORGAN_DEVICE static void multiply(Lanes<TileD>& d, Lanes<TileA>& a, Lanes<TileB>& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d.value.values[0]), "+f"(d.value.values[1]), "+f"(d.value.values[2]), "+f"(d.value.values[3])
        : "r"(a.value.pairs[0]), "r"(a.value.pairs[1]), "r"(a.value.pairs[2]), "r"(a.value.pairs[3]),
          "r"(b.value.pairs[0]), "r"(b.value.pairs[1]));
  }

  using Matrix = MatrixAt<uint32_t>;

  MIRRORGAN_DEVICE static uint32_t address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

#define MIRRORGAN_EIGHT_SUMS(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MIRRORGAN_GROUP_SUMS(d) \
  MIRRORGAN_EIGHT_SUMS(d, 0), MIRRORGAN_EIGHT_SUMS(d, 8), MIRRORGAN_EIGHT_SUMS(d, 16), MIRRORGAN_EIGHT_SUMS(d, 24)

  // Starts a product, which is added to D if `add`, and otherwise replaces it. For Hopper only.
  MIRRORGAN_DEVICE static void multiply_group(
      Warps<Lanes<GroupD>>& sums, const Matrix& a, const Matrix& b, bool add) {
    float(&d)[32] = sums.value.value.values;
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, 0, 0;\n"
        "}\n"
        : MIRRORGAN_GROUP_SUMS(d)
        : "l"(descriptor(a)), "l"(descriptor(b)), "r"(static_cast<int>(add)));
  }

  // The same for 128 columns: the first 64 and the last 64.
  MIRRORGAN_DEVICE static void multiply_group(
      Warps<Lanes<GroupD>>& first, Warps<Lanes<GroupD>>& last, const Matrix& a, const Matrix& b, bool add) {
    float(&d)[32] = first.value.value.values;
    float(&e)[32] = last.value.value.values;
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 0;\n"
        "}\n"
        : MIRRORGAN_GROUP_SUMS(d), MIRRORGAN_GROUP_SUMS(e)
        : "l"(descriptor(a)), "l"(descriptor(b)), "r"(static_cast<int>(add)));
  }

#undef MIRRORGAN_GROUP_SUMS
#undef MIRRORGAN_EIGHT_SUMS

  // These enclose the products of a group, which read shared memory and write the sums only in between.
  MIRRORGAN_DEVICE static void begin_products() {
    __syncwarp();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  MIRRORGAN_DEVICE static void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  template <int kParts>
  MIRRORGAN_DEVICE static void await_products(Warps<Lanes<GroupD>> (&sums)[kParts]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (auto& part : sums) {
#pragma unroll
      for (float& sum : part.value.value.values) {
        asm volatile("" : "+f"(sum)::"memory");  // the compiler must not move uses of the sum before this
      }
    }
  }

  // Starts to copy an Eight to shared memory or, if it does not exist, to write zeros there.
  MIRRORGAN_DEVICE static void copy(Eight* to, const uint16_t* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
  }

  // Makes earlier writes to shared memory visible to products: those of this thread, and those before a barrier that this
  // thread has passed.
  MIRRORGAN_DEVICE static void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  // A barrier counts arrivals. When all have arrived, a round is complete and the next one starts.
  using Barrier = uint64_t;
  MIRRORGAN_DEVICE static void prepare(Barrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&barrier)), "r"(arrivals) : "memory");
  }
  // Each warp arrives once.
  MIRRORGAN_DEVICE static void arrive(Barrier& barrier) {
    __syncwarp();
    if (first_lane() == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(&barrier)) : "memory");
    }
  }
  // Each thread arrives once, after all its copies are complete.
  MIRRORGAN_DEVICE static void arrive_with_copies(Barrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address(&barrier)) : "memory");
  }
  // Waits until a round is complete; rounds count from 0. The previous round must be complete already. Round -1 counts as
  // complete.
  MIRRORGAN_DEVICE static void await(Barrier& barrier, int round) {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n"
          ".reg .pred done;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n"
          "}\n"
          : "=r"(done)
          : "r"(address(&barrier)), "r"(round & 1)
          : "memory");
    }
  }

  // Returns the value of the lane whose index differs in these bits.
  MIRRORGAN_DEVICE static Lanes<float> exchange(const Lanes<float>& values, int bits) {
    return {__shfl_xor_sync(0xffffffffu, values.value, bits)};
  }

  MIRRORGAN_DEVICE static float exp(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634f));
    return power;
  }
  MIRRORGAN_DEVICE static float reciprocal(float x) { return __fdividef(1.0f, x); }

 private:
  // The descriptor of a matrix without a swizzle, for wgmma.
  MIRRORGAN_DEVICE static uint64_t descriptor(const Matrix& matrix) {
    return static_cast<uint64_t>(matrix.stride / 16) << 32 | matrix.leading / 16 << 16 | matrix.begin / 16;
  }
};

#endif

// The sigmoid on any machine.
template <typename Machine>
MIRRORGAN_DEVICE float sigmoid(float x) {
  return Machine::reciprocal(1.0f + Machine::exp(-x));
}

}  // namespace mirrorgan::cuda
