// mirrorgan::image_head on the CPU. What it computes is defined in mirrorgan_fast/ops/image_head.py.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "convolution_arguments.h"
#include "image_head.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace mirrorgan {
namespace {

using namespace convolution;

constexpr int64_t kRowsPerTask = 8;

// Calls write_rows(a, weight, map, image, first, end) on parts of every sample.
template <typename scalar_t, typename weight_t>
void write_images(
    const Arguments& a,
    const weight_t* weight,
    void (*write_rows)(const Arguments&, const weight_t*, const scalar_t*, uint8_t*, int64_t, int64_t)) {
  const int64_t tasks_per_sample = divide_up(a.height, kRowsPerTask), pixels = a.height * a.width;
  parallel_for(a.samples * tasks_per_sample, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / tasks_per_sample, first = task % tasks_per_sample * kRowsPerTask;
      write_rows(a, weight, static_cast<const scalar_t*>(a.x) + sample * pixels * a.channels,
                 static_cast<uint8_t*>(a.out) + sample * pixels * a.out_channels, first,
                 std::min(first + kRowsPerTask, a.height));
    }
  });
}

void image_head_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out) {
  constexpr const char* kOp = "image_head";
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(kOp, dense_x, weight, bias, Epilogue::image);
  MIRRORGAN_CHECK(a.phases == 1 && a.out_channels <= kHalf, kOp, "weight", shape_text(weight.sizes()),
                  "weights packed without upsample, for at most 16 channels");
  check_contiguous(kOp, "out", out, ScalarType::Byte, {a.samples, a.height, a.width, a.out_channels});
  if (out.numel() == 0) {
    return;
  }
  a.out = out.mutable_data_ptr();
  const bool narrow = x.scalar_type() == ScalarType::BFloat16;
#if defined(MIRRORGAN_X86)
  if (narrow && chosen_instruction_set() == InstructionSet::amx && image_head::takes_amx(a)) {
    write_images<bfloat16_bits>(a, image_head::prepare_amx(a), image_head::write_rows_amx);
    return;
  }
#endif
  if (image_head::takes_vectors(a)) {
    if (narrow) {
      write_images<bfloat16_bits>(
          a, image_head::prepare_vectors<bfloat16_bits>(a), image_head::write_rows_vectors<bfloat16_bits>);
    } else {
      write_images<float>(a, image_head::prepare_vectors<float>(a), image_head::write_rows_vectors<float>);
    }
    return;
  }
  convolution::convolve(a, Epilogue::image, x.scalar_type());
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("image_head", TORCH_BOX(&mirrorgan::image_head_cpu));
}
