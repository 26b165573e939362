// mirrorgan::image_head on the CPU: its forms for images of few channels, a few rows at a time.

#pragma once

#include <cstdint>

#include "convolution.h"

namespace mirrorgan::image_head {

// Whether the form for vectors exists for such a layer.
bool takes_vectors(const convolution::Arguments& a);
// The weights as it takes them, in memory of this thread that the next call takes again.
template <typename scalar_t>
const float* prepare_vectors(const convolution::Arguments& a);
// Grey levels of rows [first, end) of a sample, whose map and image begin at x and out.
template <typename scalar_t>
void write_rows_vectors(
    const convolution::Arguments& a, const float* taps, const scalar_t* x, uint8_t* out, int64_t first, int64_t end);

#if defined(MIRRORGAN_X86)
// Whether the form for AMX exists for such a layer and maps of this width.
bool takes_amx(const convolution::Arguments& a);
// The weights as it takes them, in memory of this thread that the next call takes again.
const bfloat16_bits* prepare_amx(const convolution::Arguments& a);
// Grey levels of rows [first, end) of a sample. Row r of the map is at x + r * width * channels, and nothing but the rows
// from first - 1 to end is read; row r of the image is at out + r * width * out_channels.
void write_rows_amx(
    const convolution::Arguments& a,
    const bfloat16_bits* panel,
    const bfloat16_bits* x,
    uint8_t* out,
    int64_t first,
    int64_t end);
#endif

}  // namespace mirrorgan::image_head
