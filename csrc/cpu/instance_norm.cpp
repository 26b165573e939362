// mirrorgan::instance_norm and its backward on the CPU. What they compute is defined in
// mirrorgan_fast/ops/instance_norm.py.
//
// Each image of a channels_last map is a matrix (pixels, channels). The forward reads it twice: once for the statistics,
// once to write the padded result, row by row; a pixel of the border is computed again from the pixel that it reflects. The
// backward first folds the gradient of the border onto the pixels that it reflects, then reads it and x twice. Work is cut
// into chunks of pixels and into rows, which do not depend on the number of threads or on the other images.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "channel_statistics.h"
#include "parallel.h"
#include "vectors.h"

namespace mirrorgan {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "instance_norm";

struct Arguments {
  const void* x;         // (N, H, W, C)
  const void* residual;  // (N, H, W, C) with these strides of an image, a row and a pixel; may be null
  int64_t image_stride, row_stride, pixel_stride;
  const void* grad_out;  // (N, H + 2 padding, W + 2 padding, C)
  const void* grad_y;    // (N, H, W, C), the gradient of y
  void* out;             // forward: like grad_out; backward: like x
  int64_t images, height, width, channels, padding;
  float slope;
  const float* mean;         // (N, C), like the following ones
  const float* inverse_std;
  const float* offset;  // the gradient of x is inverse_std * (grad_z - offset - tilt * z)
  const float* tilt;
  float* sums;  // (2, C), the result of a pass for one chunk of pixels
};

// The place in [0, size) that a place of the padded side shows.
MIRRORGAN_INLINE int64_t reflected(int64_t place, int64_t padding, int64_t size) {
  const int64_t inner = place - padding;
  return inner < 0 ? -inner : inner < size ? inner : 2 * (size - 1) - inner;
}

// z of one pixel, and what the leaky ReLU multiplies it by.
template <int Lanes>
struct Normalized {
  using Float = typename Vector<Lanes>::Float;
  Float mean, inverse_std;

  MIRRORGAN_INLINE void open(const Arguments& a, int64_t image, int64_t column) {
    load<Lanes>(a.mean + image * a.channels + column, mean);
    load<Lanes>(a.inverse_std + image * a.channels + column, inverse_std);
  }

  template <typename scalar_t>
  MIRRORGAN_INLINE void read(const scalar_t* x, Float& z) const {
    load<Lanes>(x, z);
    z = (z - mean) * inverse_std;
  }
};

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void measure_columns(
    const Arguments& a, int64_t image, int64_t first, int64_t end, int64_t column) {
  const auto* x = static_cast<const scalar_t*>(a.x) + image * a.height * a.width * a.channels;
  measure_column<scalar_t, Lanes>(x, a.channels, first, end, column, a.sums);
}

// Writes rows [first, end) of the padded result of an image.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void write_columns(const Arguments& a, int64_t image, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t out_width = a.width + 2 * a.padding;
  Normalized<Lanes> normalized;
  normalized.open(a, image, column);
  for (int64_t row = first; row < end; ++row) {
    const int64_t h = reflected(row, a.padding, a.height);
    const auto* x = static_cast<const scalar_t*>(a.x) + (image * a.height + h) * a.width * a.channels + column;
    auto* out = static_cast<scalar_t*>(a.out) +
                (image * (a.height + 2 * a.padding) + row) * out_width * a.channels + column;
    const auto* residual = a.residual == nullptr ? nullptr
                                                 : static_cast<const scalar_t*>(a.residual) + image * a.image_stride +
                                                       h * a.row_stride + column;
    for (int64_t place = 0; place < out_width; ++place) {
      const int64_t w = reflected(place, a.padding, a.width);
      Float z;
      normalized.read(x + w * a.channels, z);
      Float y = z < 0.0f ? z * a.slope : z;
      if (residual != nullptr) {
        Float more;
        load<Lanes>(residual + w * a.pixel_stride, more);
        y += more;
      }
      store<Lanes>(y, out + place * a.channels);
    }
  }
}

// Adds up the gradients of all places of the padded result that show a pixel, for rows [first, end) of y.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void fold_columns(const Arguments& a, int64_t image, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t out_height = a.height + 2 * a.padding, out_width = a.width + 2 * a.padding;
  const auto* grad_out = static_cast<const scalar_t*>(a.grad_out) + image * out_height * out_width * a.channels + column;
  auto* grad_y = static_cast<scalar_t*>(a.out) + image * a.height * a.width * a.channels + column;
  // A pixel is shown inside, and by a place of either border.
  const auto shown = [&](int64_t pixel, int64_t size, int64_t (&places)[3]) {
    int count = 0;
    places[count++] = pixel + a.padding;
    if (pixel > 0 && pixel <= a.padding) {
      places[count++] = a.padding - pixel;
    }
    if (pixel < size - 1 && pixel >= size - 1 - a.padding) {
      places[count++] = 2 * (size - 1) - pixel + a.padding;
    }
    return count;
  };
  for (int64_t h = first; h < end; ++h) {
    int64_t rows[3], places[3];
    const int row_count = shown(h, a.height, rows);
    for (int64_t w = 0; w < a.width; ++w) {
      const int place_count = shown(w, a.width, places);
      Float sum = {};
      for (int i = 0; i < row_count; ++i) {
        for (int j = 0; j < place_count; ++j) {
          Float value;
          load<Lanes>(grad_out + (rows[i] * out_width + places[j]) * a.channels, value);
          sum += value;
        }
      }
      store<Lanes>(sum, grad_y + (h * a.width + w) * a.channels);
    }
  }
}

// Sums grad_z, and grad_z * z, over pixels [first, end) of an image.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void sum_columns(const Arguments& a, int64_t image, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t start = image * a.height * a.width * a.channels + column;
  const auto* x = static_cast<const scalar_t*>(a.x) + start;
  const auto* grad_y = static_cast<const scalar_t*>(a.grad_y) + start;
  Normalized<Lanes> normalized;
  normalized.open(a, image, column);
  Float sum = {}, product = {};
  for (int64_t pixel = first; pixel < end; ++pixel) {
    Float z, grad_z;
    normalized.read(x + pixel * a.channels, z);
    load<Lanes>(grad_y + pixel * a.channels, grad_z);
    grad_z = z < 0.0f ? grad_z * a.slope : grad_z;
    sum += grad_z;
    product += grad_z * z;
  }
  store<Lanes>(sum, a.sums + column);
  store<Lanes>(product, a.sums + a.channels + column);
}

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void gradient_columns(const Arguments& a, int64_t image, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  const int64_t start = image * a.height * a.width * a.channels + column;
  const auto* x = static_cast<const scalar_t*>(a.x) + start;
  const auto* grad_y = static_cast<const scalar_t*>(a.grad_y) + start;
  auto* grad_x = static_cast<scalar_t*>(a.out) + start;
  Normalized<Lanes> normalized;
  normalized.open(a, image, column);
  Float offset, tilt;
  load<Lanes>(a.offset + image * a.channels + column, offset);
  load<Lanes>(a.tilt + image * a.channels + column, tilt);
  for (int64_t pixel = first; pixel < end; ++pixel) {
    Float z, grad_z;
    normalized.read(x + pixel * a.channels, z);
    load<Lanes>(grad_y + pixel * a.channels, grad_z);
    grad_z = z < 0.0f ? grad_z * a.slope : grad_z;
    store<Lanes>(normalized.inverse_std * (grad_z - offset - tilt * z), grad_x + pixel * a.channels);
  }
}

using Part = void (*)(const Arguments&, int64_t image, int64_t first, int64_t end);

// A pass over a part of an image: the columns of full vectors, then the remaining columns one by one.
#define MIRRORGAN_PASS(name, columns, scalar_t, lanes, target)                       \
  target void name(const Arguments& a, int64_t image, int64_t first, int64_t end) {  \
    int64_t column = 0;                                                              \
    for (; column + lanes <= a.channels; column += lanes) {                          \
      columns<scalar_t, lanes>(a, image, first, end, column);                        \
    }                                                                                \
    for (; column < a.channels; ++column) {                                          \
      columns<scalar_t, 1>(a, image, first, end, column);                            \
    }                                                                                \
  }

#define MIRRORGAN_PASSES(set, lanes, target)                                                \
  MIRRORGAN_PASS(measure_float_##set, measure_columns, float, lanes, target)                \
  MIRRORGAN_PASS(measure_bfloat16_##set, measure_columns, bfloat16_bits, lanes, target)     \
  MIRRORGAN_PASS(write_float_##set, write_columns, float, lanes, target)                    \
  MIRRORGAN_PASS(write_bfloat16_##set, write_columns, bfloat16_bits, lanes, target)         \
  MIRRORGAN_PASS(fold_float_##set, fold_columns, float, lanes, target)                      \
  MIRRORGAN_PASS(fold_bfloat16_##set, fold_columns, bfloat16_bits, lanes, target)           \
  MIRRORGAN_PASS(sum_float_##set, sum_columns, float, lanes, target)                        \
  MIRRORGAN_PASS(sum_bfloat16_##set, sum_columns, bfloat16_bits, lanes, target)             \
  MIRRORGAN_PASS(gradient_float_##set, gradient_columns, float, lanes, target)              \
  MIRRORGAN_PASS(gradient_bfloat16_##set, gradient_columns, bfloat16_bits, lanes, target)

struct Passes {
  Part measure, write, fold, sum, gradient;
};

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_PASSES)

Passes passes_for(ScalarType dtype) {
  if (dtype == ScalarType::BFloat16) {
    return {MIRRORGAN_CHOSEN(measure_bfloat16), MIRRORGAN_CHOSEN(write_bfloat16), MIRRORGAN_CHOSEN(fold_bfloat16),
            MIRRORGAN_CHOSEN(sum_bfloat16), MIRRORGAN_CHOSEN(gradient_bfloat16)};
  }
  return {MIRRORGAN_CHOSEN(measure_float), MIRRORGAN_CHOSEN(write_float), MIRRORGAN_CHOSEN(fold_float),
          MIRRORGAN_CHOSEN(sum_float), MIRRORGAN_CHOSEN(gradient_float)};
}

// Calls a pass for parts of at most `step` of the `size` rows or pixels of each image. The sums of a part, if there are any,
// are (2, C) floats, one part after the other.
void for_parts(const Arguments& a, Part pass, int64_t size, int64_t step, float* sums = nullptr) {
  const int64_t parts = (size + step - 1) / step;
  parallel_for(a.images * parts, [&](int64_t begin, int64_t end) {
    Arguments part_arguments = a;
    for (int64_t part = begin; part < end; ++part) {
      part_arguments.sums = sums == nullptr ? nullptr : sums + part * 2 * a.channels;
      const int64_t first = part % parts * step;
      pass(part_arguments, part / parts, first, first + step < size ? first + step : size);
    }
  });
}

// The results of a pass for all chunks of pixels, (N, chunks, 2, C).
std::vector<float> results_of_chunks(const Arguments& a, Part pass) {
  const int64_t pixels = a.height * a.width, chunks = (pixels + kChunk - 1) / kChunk;
  std::vector<float> sums(static_cast<size_t>(a.images * chunks * 2 * a.channels));
  for_parts(a, pass, pixels, kChunk, sums.data());
  return sums;
}

int64_t rows_of_a_part(const Arguments& a, int64_t width) {
  const int64_t rows = kChunk / width;
  return rows < 1 ? 1 : rows;
}

Arguments arguments_of(const Tensor& x, const Tensor& dense_x, double slope, int64_t padding) {
  const ScalarType dtype = x.scalar_type();
  MIRRORGAN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, kOp, "x", dtype,
                  "Float or BFloat16, which the compiled CPU kernel takes");
  MIRRORGAN_CHECK(x.numel() > 0, kOp, "x", shape_text(x.sizes()), "at least one pixel");
  MIRRORGAN_CHECK(padding >= 0 && padding < x.size(2) && padding < x.size(3), kOp, "padding", padding,
                  "0 or more, less than H and W");
  Arguments a{};
  a.x = dense_x.const_data_ptr();
  a.images = x.size(0);
  a.channels = x.size(1);
  a.height = x.size(2);
  a.width = x.size(3);
  a.padding = padding;
  a.slope = static_cast<float>(slope);
  return a;
}

Tensor empty_map(const Tensor& like, int64_t padding) {
  return torch::stable::empty(
      {like.size(0), like.size(1), like.size(2) + 2 * padding, like.size(3) + 2 * padding}, like.scalar_type(),
      std::nullopt, like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

// The arguments point into the result.
std::vector<float> normalize_by(Arguments& a, const Tensor& mean, const Tensor& variance, double eps) {
  check_contiguous(kOp, "mean", mean, ScalarType::Float, {a.images, a.channels});
  check_contiguous(kOp, "variance", variance, ScalarType::Float, {a.images, a.channels});
  const auto* variances = static_cast<const float*>(variance.const_data_ptr());
  std::vector<float> inverse_std(static_cast<size_t>(a.images * a.channels));
  for (size_t i = 0; i < inverse_std.size(); ++i) {
    inverse_std[i] = static_cast<float>(1.0 / std::sqrt(variances[i] + eps));
  }
  a.mean = static_cast<const float*>(mean.const_data_ptr());
  a.inverse_std = inverse_std.data();
  return inverse_std;
}

std::tuple<Tensor, Tensor, Tensor> instance_norm_cpu(
    const Tensor& x, const std::optional<Tensor>& residual, double slope, int64_t padding, double eps) {
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, C, H, W)");
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(x, dense_x, slope, padding);
  if (residual.has_value()) {
    MIRRORGAN_CHECK(residual->scalar_type() == x.scalar_type(), kOp, "residual", residual->scalar_type(),
                    x.scalar_type());
    MIRRORGAN_CHECK_SHAPE(kOp, "residual", *residual, {a.images, a.channels, a.height, a.width});
    MIRRORGAN_CHECK(residual->stride(1) == 1 || a.channels == 1, kOp, "residual",
                    "strides " + shape_text(residual->strides()), "channels that are next to each other");
    a.residual = residual->const_data_ptr();
    a.image_stride = residual->stride(0);
    a.row_stride = residual->stride(2);
    a.pixel_stride = residual->stride(3);
  }
  Tensor out = empty_map(x, padding);
  const auto empty_statistics = [&] {
    return torch::stable::empty({a.images, a.channels}, ScalarType::Float, std::nullopt, x.device());
  };
  Tensor mean = empty_statistics(), variance = empty_statistics();
  a.out = out.mutable_data_ptr();
  const Passes passes = passes_for(x.scalar_type());

  const std::vector<float> measured = results_of_chunks(a, passes.measure);
  const int64_t of_image = static_cast<int64_t>(measured.size()) / a.images;
  for (int64_t image = 0; image < a.images; ++image) {
    merge_statistics(measured.data() + image * of_image, a.height * a.width, a.channels,
                     static_cast<float*>(mean.mutable_data_ptr()) + image * a.channels,
                     static_cast<float*>(variance.mutable_data_ptr()) + image * a.channels);
  }
  const std::vector<float> inverse_std = normalize_by(a, mean, variance, eps);
  for_parts(a, passes.write, a.height + 2 * padding, rows_of_a_part(a, a.width + 2 * padding));
  return {out, mean, variance};
}

std::tuple<Tensor, Tensor> instance_norm_backward_cpu(
    const Tensor& grad_out,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& variance,
    double slope,
    int64_t padding,
    double eps) {
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, C, H, W)");
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(x, dense_x, slope, padding);
  MIRRORGAN_CHECK(grad_out.scalar_type() == x.scalar_type(), kOp, "grad_out", grad_out.scalar_type(), x.scalar_type());
  MIRRORGAN_CHECK_SHAPE(kOp, "grad_out", grad_out,
                        {a.images, a.channels, a.height + 2 * padding, a.width + 2 * padding});
  const Tensor dense_grad_out = torch::stable::contiguous(grad_out, MemoryFormat::ChannelsLast);
  const Passes passes = passes_for(x.scalar_type());
  a.grad_out = dense_grad_out.const_data_ptr();
  Tensor grad_y = empty_map(x, 0), grad_x = empty_map(x, 0);
  a.out = grad_y.mutable_data_ptr();
  for_parts(a, passes.fold, a.height, rows_of_a_part(a, a.width));

  a.grad_y = grad_y.const_data_ptr();
  a.out = grad_x.mutable_data_ptr();
  const std::vector<float> inverse_std = normalize_by(a, mean, variance, eps);
  const std::vector<float> sums = results_of_chunks(a, passes.sum);
  const int64_t pixels = a.height * a.width, of_image = static_cast<int64_t>(sums.size()) / a.images;
  std::vector<float> lines(static_cast<size_t>(2 * a.images * a.channels));
  std::vector<double> total(static_cast<size_t>(2 * a.channels));
  for (int64_t image = 0; image < a.images; ++image) {
    total.assign(total.size(), 0.0);
    for (int64_t i = 0; i < of_image; ++i) {
      total[i % (2 * a.channels)] += sums[image * of_image + i];
    }
    for (int64_t c = 0; c < a.channels; ++c) {
      lines[image * a.channels + c] = static_cast<float>(total[c] / pixels);
      lines[(a.images + image) * a.channels + c] = static_cast<float>(total[a.channels + c] / pixels);
    }
  }
  a.offset = lines.data();
  a.tilt = lines.data() + a.images * a.channels;
  for_parts(a, passes.gradient, pixels, kChunk);
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("instance_norm", TORCH_BOX(&mirrorgan::instance_norm_cpu));
  library.impl("instance_norm_backward", TORCH_BOX(&mirrorgan::instance_norm_backward_cpu));
}
