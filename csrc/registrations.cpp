// Every compiled op, registered with torch.ops.mirrorgan.
//
// The schemas are defined in Python (mirrorgan_fast/ops/), so that each op exists without this library too; here they only
// get their implementations. Everything goes through PyTorch's stable ABI, so one build serves every torch from the target
// version on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace mirrorgan {

using torch::stable::Tensor;

Tensor glam_attention_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight);

}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("glam_attention", TORCH_BOX(&mirrorgan::glam_attention_cpu));
}
