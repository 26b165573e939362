// mirrorgan::image_head on the CPU: the forms for images with few channels, which compute a few rows at a time.

#pragma once

#include <cstdint>

#include "convolution.h"

namespace mirrorgan::image_head {

// Whether the form for vectors accepts such a layer.
bool takes_vectors(const convolution::Arguments& a);
// The weights in the order that this form needs, in memory of this thread that the next call overwrites.
template <typename scalar_t>
const float* prepare_vectors(const convolution::Arguments& a);
// Writes rows [first, end) of the image of a sample, whose map and image start at x and out.
template <typename scalar_t>
void write_rows_vectors(
    const convolution::Arguments& a, const float* taps, const scalar_t* x, uint8_t* out, int64_t first, int64_t end);

#if defined(MIRRORGAN_X86)
// Whether the form for AMX accepts such a layer and maps of this width.
bool takes_amx(const convolution::Arguments& a);
// The weights in the order that this form needs, in memory of this thread that the next call overwrites.
const bfloat16_bits* prepare_amx(const convolution::Arguments& a);
// Writes rows [first, end) of the image of a sample. Row r of the map is at x + r * width * channels; only the rows from
// first - 1 to end are read. Row r of the image is at out + r * width * out_channels.
void write_rows_amx(
    const convolution::Arguments& a,
    const bfloat16_bits* panel,
    const bfloat16_bits* x,
    uint8_t* out,
    int64_t first,
    int64_t end);
#endif

}  // namespace mirrorgan::image_head
