// The convolutions in conv_wgmma.cu, which conv_glu.cu and conv_add.cu call.

#pragma once

#include <optional>

#include "launch.h"

namespace mirrorgan::cuda::conv_wgmma {

// Whether this build and the GPU of `x` have wgmma.
bool has_wgmma(const Tensor& x);

// Computes conv_glu. The tensors must have been checked, and `x` must be dense in channels_last order. Returns false,
// and does nothing, if the kernel does not accept the tensors.
bool conv_glu(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& out);

// Computes conv_add. The tensors must have been checked, and `x` and `residual` must be dense in channels_last order.
void conv_add(
    const char* op,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor& out);

}  // namespace mirrorgan::cuda::conv_wgmma
