// The Python module mirrorgan_fast._C. Importing it registers the compiled ops, each from the file of its name. It also
// says what they were built with.
//
// The schemas are defined in Python (mirrorgan_fast/ops/), so that every op exists without this library too. The C++ files
// only register implementations. They use PyTorch's stable ABI only, so one build runs on every PyTorch version from the
// target version on.

#include <cstdint>

// PyTorch 2.11's copy of pybind11 does not compile while TORCH_TARGET_VERSION is defined. This file uses nothing else of
// PyTorch.
constexpr uint64_t kTorchTargetVersion = TORCH_TARGET_VERSION;
#undef TORCH_TARGET_VERSION

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/instruction_sets.h"

#define MIRRORGAN_TEXT_(x) #x
#define MIRRORGAN_TEXT(x) MIRRORGAN_TEXT_(x)

namespace mirrorgan {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

// The instruction sets that the kernels were compiled for, or only those that this processor has; the narrowest first.
std::vector<std::string> instruction_sets(bool of_this_processor) {
  std::vector<std::string> names;
#if defined(MIRRORGAN_X86)
  const std::vector<InstructionSet> compiled{InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512,
                                             InstructionSet::avx512_bf16, InstructionSet::amx};
#else
  const std::vector<InstructionSet> compiled{InstructionSet::baseline};
#endif
  for (const InstructionSet set : compiled) {
    if (!of_this_processor || processor_has(set)) {
      names.push_back(name_of(set));
    }
  }
  return names;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["cpp_standard"] = static_cast<int>(__cplusplus / 100 % 100);
  info["instruction_sets"] = instruction_sets(false);
  info["processor_instruction_sets"] = instruction_sets(true);
  info["instruction_set"] = name_of(chosen_instruction_set());
#if defined(MIRRORGAN_CUDA_ARCHITECTURES)
  info["cuda_architectures"] = std::string(MIRRORGAN_TEXT(MIRRORGAN_CUDA_ARCHITECTURES));
#else
  info["cuda_architectures"] = std::string();
#endif
  info["torch_target"] =
      std::to_string(kTorchTargetVersion >> 56) + "." + std::to_string(kTorchTargetVersion >> 48 & 0xff);
  return info;
}

}  // namespace
}  // namespace mirrorgan

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of mirrorgan-fast; importing it registers them with torch.ops.mirrorgan.";
  module.def("build_info", &mirrorgan::build_info, "What this extension was built with and for.");
}
