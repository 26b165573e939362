// Every compiled op, registered with torch.ops.mirrorgan.
//
// The schemas are defined in Python (mirrorgan_fast/ops/), so that each op exists without this library too; here they only
// get their implementations. Everything goes through PyTorch's stable ABI, so one build serves every torch from the target
// version on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace mirrorgan {

using torch::stable::Tensor;

Tensor glam_attention_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight);

std::tuple<Tensor, Tensor, Tensor> batch_norm_glu_cpu(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);

std::tuple<Tensor, Tensor, Tensor> batch_norm_glu_backward_cpu(
    const Tensor& gradient,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& mean,
    const Tensor& variance,
    double eps);

void bidirectional_lstm_cpu(
    const Tensor& gates,
    const Tensor& tokens,
    const Tensor& lengths,
    const Tensor& recurrent,
    Tensor states,
    Tensor last);

void conv_add_cpu(
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor out);

void conv_glu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out);

void glam_cpu(
    const Tensor& noise,
    const Tensor& condition_noise,
    const Tensor& words,
    const Tensor& mask,
    const Tensor& sentence,
    const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases,
    const std::vector<Tensor>& mixes,
    const std::vector<Tensor>& sentence_weights,
    int64_t upsamples,
    Tensor out);

void glam_attention_mix_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    Tensor out);

void glam_stage_cpu(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases,
    const std::optional<Tensor>& head_weight,
    const std::optional<Tensor>& head_bias,
    Tensor out);

void image_head_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out);

#if defined(USE_CUDA)
void conv_add_cuda(
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor out);

void conv_glu_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out);

void glam_attention_mix_cuda(
    const Tensor& features,
    const Tensor& words,
    const Tensor& mask,
    const std::optional<Tensor>& sentence,
    const std::optional<Tensor>& sentence_weight,
    const Tensor& mix,
    Tensor out);
#endif

}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("batch_norm_glu", TORCH_BOX(&mirrorgan::batch_norm_glu_cpu));
  library.impl("batch_norm_glu_backward", TORCH_BOX(&mirrorgan::batch_norm_glu_backward_cpu));
  library.impl("bidirectional_lstm", TORCH_BOX(&mirrorgan::bidirectional_lstm_cpu));
  library.impl("conv_add", TORCH_BOX(&mirrorgan::conv_add_cpu));
  library.impl("conv_glu", TORCH_BOX(&mirrorgan::conv_glu_cpu));
  library.impl("glam", TORCH_BOX(&mirrorgan::glam_cpu));
  library.impl("glam_attention", TORCH_BOX(&mirrorgan::glam_attention_cpu));
  library.impl("glam_attention_mix", TORCH_BOX(&mirrorgan::glam_attention_mix_cpu));
  library.impl("glam_stage", TORCH_BOX(&mirrorgan::glam_stage_cpu));
  library.impl("image_head", TORCH_BOX(&mirrorgan::image_head_cpu));
}

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CUDA, library) {
  library.impl("conv_add", TORCH_BOX(&mirrorgan::conv_add_cuda));
  library.impl("conv_glu", TORCH_BOX(&mirrorgan::conv_glu_cuda));
  library.impl("glam_attention_mix", TORCH_BOX(&mirrorgan::glam_attention_mix_cuda));
}
#endif
