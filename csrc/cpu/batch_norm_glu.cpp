// mirrorgan::batch_norm_glu and its backward on the CPU. What they compute is defined in
// mirrorgan_fast/ops/batch_norm_glu.py.
//
// A channels_last map is a matrix (pixels, channels). The forward reads it twice: once for the statistics, once for the
// result. The backward reads it and the incoming gradient twice. Neither the normalized map nor the gates are written to
// memory. The matrix is cut into chunks of rows, whose size does not depend on the number of threads. A chunk fits into the
// second-level cache and is processed one column of vectors at a time, so that the constants and sums of a channel stay in
// registers. The sums of the chunks are added in order, in float64, so the bits do not depend on the number of threads.

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

constexpr const char* kOp = "batch_norm_glu";

struct Arguments {
  const void* x;         // (rows, 2 * halves)
  const void* grad_out;  // (rows, halves), the gradient of the result
  void* out;             // forward: (rows, halves); backward: (rows, 2 * halves)
  int64_t rows, halves;  // the channels are `halves` values, then as many gates
  const float* weight;   // (2 * halves), like the following ones
  const float* bias;
  const float* mean;
  const float* inverse_std;
  const float* offset;  // the gradient of x is scale * grad_y - offset - slope * (x - mean)
  const float* slope;
  float* sums;  // (2, 2 * halves), the result of a pass for one chunk
};

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void measure_columns(const Arguments& a, int64_t first, int64_t end, int64_t column) {
  measure_column<scalar_t, Lanes>(static_cast<const scalar_t*>(a.x), 2 * a.halves, first, end, column, a.sums);
}

// The constants of a column of values or gates: y = scale (x - mean) + bias.
template <int Lanes>
struct Half {
  using Float = typename Vector<Lanes>::Float;
  Float mean, scale, bias;

  MIRRORGAN_INLINE void open(const Arguments& a, int64_t channel) {
    Float inverse_std;
    load<Lanes>(a.mean + channel, mean);
    load<Lanes>(a.weight + channel, scale);
    load<Lanes>(a.inverse_std + channel, inverse_std);
    load<Lanes>(a.bias + channel, bias);
    scale *= inverse_std;
  }
};

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void gate_columns(const Arguments& a, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  const auto* x = static_cast<const scalar_t*>(a.x) + column;
  auto* out = static_cast<scalar_t*>(a.out) + column;
  Half<Lanes> values, gates;
  values.open(a, column);
  gates.open(a, a.halves + column);
  for (int64_t row = first; row < end; ++row) {
    Float value, gate, s, rest;
    load<Lanes>(x + row * 2 * a.halves, value);
    load<Lanes>(x + (row * 2 + 1) * a.halves, gate);
    sigmoid<Lanes>((gate - gates.mean) * gates.scale + gates.bias, s, rest);
    store<Lanes>(((value - values.mean) * values.scale + values.bias) * s, out + row * a.halves);
  }
}

// Computes x - mean for the values and the gates of one row, and the gradients of their y.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void read_row(
    const Arguments& a,
    int64_t row,
    int64_t column,
    const Half<Lanes>& values,
    const Half<Lanes>& gates,
    typename Vector<Lanes>::Float& value,
    typename Vector<Lanes>::Float& gate,
    typename Vector<Lanes>::Float& grad_value,
    typename Vector<Lanes>::Float& grad_gate) {
  const auto* x = static_cast<const scalar_t*>(a.x) + row * 2 * a.halves + column;
  typename Vector<Lanes>::Float grad_result, s, rest;
  load<Lanes>(x, value);
  load<Lanes>(x + a.halves, gate);
  load<Lanes>(static_cast<const scalar_t*>(a.grad_out) + row * a.halves + column, grad_result);
  value -= values.mean;
  gate -= gates.mean;
  sigmoid<Lanes>(gate * gates.scale + gates.bias, s, rest);
  grad_value = grad_result * s;
  grad_gate = grad_value * rest * (value * values.scale + values.bias);
}

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void sum_gradient_columns(const Arguments& a, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  Half<Lanes> values, gates;
  values.open(a, column);
  gates.open(a, a.halves + column);
  Float value_sum = {}, gate_sum = {}, value_product = {}, gate_product = {};
  for (int64_t row = first; row < end; ++row) {
    Float value, gate, grad_value, grad_gate;
    read_row<scalar_t, Lanes>(a, row, column, values, gates, value, gate, grad_value, grad_gate);
    value_sum += grad_value;
    gate_sum += grad_gate;
    value_product += grad_value * value;
    gate_product += grad_gate * gate;
  }
  store<Lanes>(value_sum, a.sums + column);
  store<Lanes>(gate_sum, a.sums + a.halves + column);
  store<Lanes>(value_product, a.sums + 2 * a.halves + column);
  store<Lanes>(gate_product, a.sums + 3 * a.halves + column);
}

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void gradient_columns(const Arguments& a, int64_t first, int64_t end, int64_t column) {
  using Float = typename Vector<Lanes>::Float;
  Half<Lanes> values, gates;
  values.open(a, column);
  gates.open(a, a.halves + column);
  auto* out = static_cast<scalar_t*>(a.out) + column;
  Float value_offset, gate_offset, value_slope, gate_slope;
  load<Lanes>(a.offset + column, value_offset);
  load<Lanes>(a.offset + a.halves + column, gate_offset);
  load<Lanes>(a.slope + column, value_slope);
  load<Lanes>(a.slope + a.halves + column, gate_slope);
  for (int64_t row = first; row < end; ++row) {
    Float value, gate, grad_value, grad_gate;
    read_row<scalar_t, Lanes>(a, row, column, values, gates, value, gate, grad_value, grad_gate);
    store<Lanes>(values.scale * grad_value - (value_offset + value_slope * value), out + row * 2 * a.halves);
    store<Lanes>(gates.scale * grad_gate - (gate_offset + gate_slope * gate), out + (row * 2 + 1) * a.halves);
  }
}

using Chunk = void (*)(const Arguments&, int64_t first, int64_t end);

// A pass over a chunk: the columns of full vectors, then the remaining columns one by one.
#define MIRRORGAN_PASS(name, columns, count, scalar_t, lanes, target)               \
  target void name(const Arguments& a, int64_t first, int64_t end) {                \
    int64_t column = 0;                                                             \
    for (; column + lanes <= (count); column += lanes) {                            \
      columns<scalar_t, lanes>(a, first, end, column);                              \
    }                                                                               \
    for (; column < (count); ++column) {                                            \
      columns<scalar_t, 1>(a, first, end, column);                                  \
    }                                                                               \
  }

#define MIRRORGAN_PASSES(set, lanes, target)                                                             \
  MIRRORGAN_PASS(measure_float_##set, measure_columns, 2 * a.halves, float, lanes, target)               \
  MIRRORGAN_PASS(measure_bfloat16_##set, measure_columns, 2 * a.halves, bfloat16_bits, lanes, target)    \
  MIRRORGAN_PASS(gate_float_##set, gate_columns, a.halves, float, lanes, target)                         \
  MIRRORGAN_PASS(gate_bfloat16_##set, gate_columns, a.halves, bfloat16_bits, lanes, target)              \
  MIRRORGAN_PASS(sum_gradient_float_##set, sum_gradient_columns, a.halves, float, lanes, target)         \
  MIRRORGAN_PASS(sum_gradient_bfloat16_##set, sum_gradient_columns, a.halves, bfloat16_bits, lanes, target) \
  MIRRORGAN_PASS(gradient_float_##set, gradient_columns, a.halves, float, lanes, target)                 \
  MIRRORGAN_PASS(gradient_bfloat16_##set, gradient_columns, a.halves, bfloat16_bits, lanes, target)

struct Passes {
  Chunk measure, gate, sum_gradient, gradient;
};

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_PASSES)

Passes passes_for(bool is_bfloat16) {
  if (is_bfloat16) {
    return {MIRRORGAN_CHOSEN(measure_bfloat16), MIRRORGAN_CHOSEN(gate_bfloat16),
            MIRRORGAN_CHOSEN(sum_gradient_bfloat16), MIRRORGAN_CHOSEN(gradient_bfloat16)};
  }
  return {MIRRORGAN_CHOSEN(measure_float), MIRRORGAN_CHOSEN(gate_float), MIRRORGAN_CHOSEN(sum_gradient_float),
          MIRRORGAN_CHOSEN(gradient_float)};
}

void for_chunks(const Arguments& a, Chunk pass, float* sums) {
  const int64_t chunks = (a.rows + kChunk - 1) / kChunk;
  parallel_for(chunks, [&](int64_t begin, int64_t end) {
    Arguments chunk_arguments = a;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk;
      chunk_arguments.sums = sums == nullptr ? nullptr : sums + chunk * 4 * a.halves;
      pass(chunk_arguments, first, first + kChunk < a.rows ? first + kChunk : a.rows);
    }
  });
}

// The results of a pass for all chunks, (chunks, 2, 2 * halves).
std::vector<float> results_of_chunks(const Arguments& a, Chunk pass) {
  const int64_t chunks = (a.rows + kChunk - 1) / kChunk;
  std::vector<float> sums(static_cast<size_t>(chunks * 4 * a.halves));
  for_chunks(a, pass, sums.data());
  return sums;
}

// The results of a pass, summed over all chunks, (2, 2 * halves).
std::vector<double> sum_over_rows(const Arguments& a, Chunk pass) {
  const std::vector<float> sums = results_of_chunks(a, pass);
  std::vector<double> total(static_cast<size_t>(4 * a.halves));
  for (auto chunk = sums.begin(); chunk != sums.end(); chunk += 4 * a.halves) {
    for (size_t i = 0; i < total.size(); ++i) {
      total[i] += chunk[i];
    }
  }
  return total;
}

void check_channels(const char* argument, const Tensor& tensor, int64_t channels) {
  check_contiguous(kOp, argument, tensor, ScalarType::Float, {channels});
}

Arguments arguments_of(const Tensor& x, const Tensor& dense_x, const Tensor& weight, const Tensor& bias) {
  const ScalarType dtype = x.scalar_type();
  MIRRORGAN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, kOp, "x", dtype,
                  "Float or BFloat16, which the compiled CPU kernel takes");
  const int64_t channels = x.size(1);
  MIRRORGAN_CHECK(channels > 0 && channels % 2 == 0, kOp, "x", shape_text(x.sizes()), "an even number of channels");
  check_channels("weight", weight, channels);
  check_channels("bias", bias, channels);
  Arguments a{};
  a.x = dense_x.const_data_ptr();
  a.rows = x.size(0) * x.size(2) * x.size(3);
  a.halves = channels / 2;
  a.weight = static_cast<const float*>(weight.const_data_ptr());
  a.bias = static_cast<const float*>(bias.const_data_ptr());
  return a;
}

// Sets the statistics that the passes normalize by. The arguments point into the result.
std::vector<float> normalize_by(Arguments& a, const Tensor& mean, const Tensor& variance, double eps) {
  const int64_t channels = 2 * a.halves;
  check_channels("mean", mean, channels);
  check_channels("variance", variance, channels);
  const auto* variances = static_cast<const float*>(variance.const_data_ptr());
  std::vector<float> inverse_std(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) {
    inverse_std[c] = static_cast<float>(1.0 / std::sqrt(variances[c] + eps));
  }
  a.mean = static_cast<const float*>(mean.const_data_ptr());
  a.inverse_std = inverse_std.data();
  return inverse_std;
}

Tensor empty_map(const Tensor& like, int64_t channels) {
  return torch::stable::empty({like.size(0), channels, like.size(2), like.size(3)}, like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

Tensor empty_channels(const Tensor& like, int64_t channels) {
  return torch::stable::empty({channels}, ScalarType::Float, std::nullopt, like.device());
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_glu_cpu(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, 2C, H, W)");
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(x, dense_x, weight, bias);
  MIRRORGAN_CHECK(a.rows > 0, kOp, "x", shape_text(x.sizes()), "at least one pixel");
  const int64_t channels = 2 * a.halves;
  Tensor out = empty_map(x, a.halves), mean = empty_channels(x, channels), variance = empty_channels(x, channels);
  a.out = out.mutable_data_ptr();
  const Passes passes = passes_for(x.scalar_type() == ScalarType::BFloat16);
  const std::vector<float> measured = results_of_chunks(a, passes.measure);
  merge_statistics(measured.data(), a.rows, channels, static_cast<float*>(mean.mutable_data_ptr()),
                   static_cast<float*>(variance.mutable_data_ptr()));
  const std::vector<float> inverse_std = normalize_by(a, mean, variance, eps);
  for_chunks(a, passes.gate, nullptr);
  return {out, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_glu_backward_cpu(
    const Tensor& grad_out,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& mean,
    const Tensor& variance,
    double eps) {
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, 2C, H, W)");
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a = arguments_of(x, dense_x, weight, bias);
  const int64_t channels = 2 * a.halves;
  MIRRORGAN_CHECK(grad_out.scalar_type() == x.scalar_type(), kOp, "grad_out", grad_out.scalar_type(), x.scalar_type());
  MIRRORGAN_CHECK_SHAPE(kOp, "grad_out", grad_out, {x.size(0), a.halves, x.size(2), x.size(3)});
  const Tensor dense_grad_out = torch::stable::contiguous(grad_out, MemoryFormat::ChannelsLast);
  Tensor grad_x = empty_map(x, channels);
  Tensor grad_weight = empty_channels(x, channels), grad_bias = empty_channels(x, channels);
  a.grad_out = dense_grad_out.const_data_ptr();
  a.out = grad_x.mutable_data_ptr();
  const std::vector<float> inverse_std = normalize_by(a, mean, variance, eps);
  const Passes passes = passes_for(x.scalar_type() == ScalarType::BFloat16);

  const std::vector<double> sums = sum_over_rows(a, passes.sum_gradient);
  auto* grad_weights = static_cast<float*>(grad_weight.mutable_data_ptr());
  auto* grad_biases = static_cast<float*>(grad_bias.mutable_data_ptr());
  std::vector<float> lines(static_cast<size_t>(2 * channels));
  for (int64_t c = 0; c < channels; ++c) {
    const double product = sums[channels + c] * a.inverse_std[c];
    grad_biases[c] = static_cast<float>(sums[c]);
    grad_weights[c] = static_cast<float>(product);
    const double scale_of_mean = static_cast<double>(a.weight[c]) * a.inverse_std[c] / a.rows;
    lines[c] = static_cast<float>(scale_of_mean * sums[c]);
    lines[channels + c] = static_cast<float>(scale_of_mean * product * a.inverse_std[c]);
  }
  a.offset = lines.data();
  a.slope = lines.data() + channels;
  for_chunks(a, passes.gradient, nullptr);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("batch_norm_glu", TORCH_BOX(&mirrorgan::batch_norm_glu_cpu));
  library.impl("batch_norm_glu_backward", TORCH_BOX(&mirrorgan::batch_norm_glu_backward_cpu));
}
