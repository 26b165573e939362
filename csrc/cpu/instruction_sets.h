// The instruction sets that every CPU kernel is compiled for, and the choice between them when the program runs.
//
// A kernel is one always-inlined template over the number of float32 lanes, instantiated in one function for each set with
// that set's target attribute. Nothing from the standard library is called inside such a function: a copy of it compiled
// for a wide set could be the one the linker keeps for everybody.

#pragma once

#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#define MIRRORGAN_X86 1
#define MIRRORGAN_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define MIRRORGAN_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif

#define MIRRORGAN_INLINE inline __attribute__((always_inline))

namespace mirrorgan {

enum class InstructionSet { baseline, avx2, avx512 };

inline bool processor_has(InstructionSet set) {
#if defined(MIRRORGAN_X86)
  switch (set) {
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
  return set == InstructionSet::avx512 ? "avx512" : set == InstructionSet::avx2 ? "avx2" : "baseline";
}

// The widest of the compiled sets that this processor has; not wider than ATEN_CPU_CAPABILITY says, if that is set, as for
// PyTorch's own kernels.
inline InstructionSet chosen_instruction_set() {
  static const InstructionSet chosen = [] {
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string widest = variable == nullptr ? "avx512" : variable;
    if (widest == "avx512" && processor_has(InstructionSet::avx512)) {
      return InstructionSet::avx512;
    }
    const bool narrow = widest == "default" || !processor_has(InstructionSet::avx2);
    return narrow ? InstructionSet::baseline : InstructionSet::avx2;
  }();
  return chosen;
}

}  // namespace mirrorgan
