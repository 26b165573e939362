// The convolutions of conv_wgmma.cu, which conv_glu.cu and conv_add.cu call.

#pragma once

#include <optional>

#include "launch.h"

namespace mirrorgan::cuda::conv_wgmma {

// Whether this build and the GPU of `x` have the products of warpgroups.
bool has_wgmma(const Tensor& x);

// conv_glu of checked tensors, `x` dense in channels_last order. Returns false, and does nothing, where the kernel does not
// take them.
bool conv_glu(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& out);

// conv_add of checked tensors, `x` and `residual` dense in channels_last order.
void conv_add(
    const char* op,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const std::optional<Tensor>& residual,
    Tensor& out);

}  // namespace mirrorgan::cuda::conv_wgmma
