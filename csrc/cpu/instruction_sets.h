// The instruction sets that every CPU kernel is compiled for, and the choice between them at run time.
//
// A kernel is an always-inlined template over the number of float32 lanes. For each instruction set one function with that
// set's target attribute instantiates it. Such a function must not call the standard library's templates: the linker keeps
// one copy of each, which could be the one compiled for a wide instruction set.

#pragma once

#include <cstdlib>
#include <string>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#define MIRRORGAN_X86 1
#define MIRRORGAN_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define MIRRORGAN_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif

#define MIRRORGAN_INLINE inline __attribute__((always_inline))

namespace mirrorgan {

// `avx512_bf16` is AVX-512 with products of bfloat16; `amx` also has matrix tiles for them. A kernel without a form for
// either runs its form for `avx512`.
enum class InstructionSet { baseline, avx2, avx512, avx512_bf16, amx };

// Linux lets a process use the tile registers only after it has requested permission.
inline bool may_use_tiles() {
#if defined(MIRRORGAN_X86) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// Reads cpuid leaf 7, as GCC 12's __builtin_cpu_supports has no names for these bits.
inline bool has_tiles_for_bfloat16() {
#if defined(MIRRORGAN_EMULATED_TILES)
  return true;
#elif defined(MIRRORGAN_X86)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  const bool tiles = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBfloat16) && (edx & kTiles);
  return tiles && may_use_tiles();
#else
  return false;
#endif
}

inline bool processor_has(InstructionSet set) {
#if defined(MIRRORGAN_X86)
  switch (set) {
    case InstructionSet::amx:
      return processor_has(InstructionSet::avx512_bf16) && __builtin_cpu_supports("avx512vbmi") &&
             has_tiles_for_bfloat16();
    case InstructionSet::avx512_bf16:
      return processor_has(InstructionSet::avx512) && __builtin_cpu_supports("avx512bf16");
    case InstructionSet::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case InstructionSet::baseline:
      return true;
  }
#endif
  return set == InstructionSet::baseline;
}

inline const char* name_of(InstructionSet set) {
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
  return kNames[static_cast<int>(set)];
}

// The widest set that this processor has, up to `widest`.
inline InstructionSet narrowed(InstructionSet widest) {
  while (!processor_has(widest)) {
    widest = static_cast<InstructionSet>(static_cast<int>(widest) - 1);
  }
  return widest;
}

// The widest compiled set that this processor has. The environment variable ATEN_CPU_CAPABILITY can limit it, to the name
// of a set or, as for PyTorch's own kernels, to "default".
inline InstructionSet chosen_instruction_set() {
  static const InstructionSet chosen = [] {
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string widest = variable == nullptr ? "" : variable;
    for (const InstructionSet set :
         {InstructionSet::avx512_bf16, InstructionSet::avx512, InstructionSet::avx2, InstructionSet::baseline}) {
      if (widest == name_of(set) || (widest == "default" && set == InstructionSet::baseline)) {
        return narrowed(set);
      }
    }
    return narrowed(InstructionSet::amx);
  }();
  return chosen;
}

// A kernel with vectors of float32 has three forms: name_baseline, name_avx2 and name_avx512. On other processors than
// x86-64 there is only the first. MIRRORGAN_FOR_EACH_SET calls a macro (set, lanes, target) that defines a form, and
// MIRRORGAN_CHOSEN(name) is the form for the chosen set.
#if defined(MIRRORGAN_X86)
#define MIRRORGAN_FOR_EACH_SET(define)     \
  define(baseline, 4, )                    \
  define(avx2, 8, MIRRORGAN_TARGET_AVX2)   \
  define(avx512, 16, MIRRORGAN_TARGET_AVX512)
#define MIRRORGAN_CHOSEN(name) ::mirrorgan::chosen_of(name##_baseline, name##_avx2, name##_avx512)

template <typename Form>
Form chosen_of(Form baseline, Form avx2, Form avx512) {
  const InstructionSet set = chosen_instruction_set();
  return set >= InstructionSet::avx512 ? avx512 : set == InstructionSet::avx2 ? avx2 : baseline;
}
#else
#define MIRRORGAN_FOR_EACH_SET(define) define(baseline, 4, )
#define MIRRORGAN_CHOSEN(name) name##_baseline
#endif

}  // namespace mirrorgan
