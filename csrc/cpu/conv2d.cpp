// mirrorgan::conv2d_weight_gradient on the CPU, in float32. What it computes is defined in
// mirrorgan_fast/ops/conv2d.py.
//
// For each tap of the kernel it is a matrix product that sums over all pixels: (O, pixels) @ (pixels, C). The pixels are
// taken kSummed at a time. Of these, the gradients are packed once, in groups of kRows channels, and the input once for each
// tap and each group of columns, with zeros where the tap is outside of the map; a group stays in the first-level cache
// while it is multiplied by all rows. How the work is cut does not depend on the number of threads, nor do the bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../checks.h"
#include "parallel.h"
#include "vectors.h"
#include "workspace.h"

namespace mirrorgan {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "conv2d_weight_gradient";
constexpr int64_t kSummed = 256;  // pixels: 16 KiB of a group of columns with AVX2
constexpr int64_t kRows = 6;      // with two vectors each these are twelve sums, which fit into 16 registers
constexpr int64_t kMaxParts = 16;
constexpr int64_t kMaxFloatsOfParts = 4 << 20;

struct Arguments {
  const float* grad_out;  // (N, OH, OW, O)
  const float* x;         // (N, H, W, C)
  float* out;             // (O, KH, KW, C)
  int64_t samples, height, width, channels, out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width, stride, padding;

  int64_t pixels() const {
    return samples * out_height * out_width;
  }
  int64_t taps() const {
    return kernel_height * kernel_width;
  }
  int64_t row_groups() const {
    return (out_channels + kRows - 1) / kRows;
  }
};

// Where the pixels of a sum are.
struct Places {
  int64_t sample[kSummed], y[kSummed], x[kSummed];  // y and x in the input, for the tap (0, 0)
};

MIRRORGAN_INLINE void find_places(const Arguments& a, int64_t first, int64_t count, Places& places) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) / a.out_width;
    places.x[i] = (first + i) % a.out_width * a.stride - a.padding;
    places.y[i] = row % a.out_height * a.stride - a.padding;
    places.sample[i] = row / a.out_height;
  }
}

// rows (groups, count, kRows) = the gradients of `count` pixels; channels past the last are zero.
MIRRORGAN_INLINE void pack_rows(const Arguments& a, int64_t first, int64_t count, float* rows) {
  for (int64_t channel = 0; channel < a.out_channels; channel += kRows) {
    const int64_t valid = a.out_channels - channel < kRows ? a.out_channels - channel : kRows;
    const float* source = a.grad_out + first * a.out_channels + channel;
    for (int64_t i = 0; i < count; ++i, source += a.out_channels, rows += kRows) {
      for (int64_t r = 0; r < kRows; ++r) {
        rows[r] = r < valid ? source[r] : 0.0f;
      }
    }
  }
}

// columns (count, Columns) = the input under a tap, from `channel` on; zero outside of the map.
template <int64_t Columns>
MIRRORGAN_INLINE void pack_columns(
    const Arguments& a, const Places& places, int64_t count, int64_t tap, int64_t channel, float* columns) {
  const int64_t down = tap / a.kernel_width, right = tap % a.kernel_width;
  const int64_t valid = a.channels - channel < Columns ? a.channels - channel : Columns;
  for (int64_t i = 0; i < count; ++i, columns += Columns) {
    const int64_t y = places.y[i] + down, x = places.x[i] + right;
    if (y < 0 || y >= a.height || x < 0 || x >= a.width) {
      __builtin_memset(columns, 0, Columns * sizeof(float));
      continue;
    }
    const float* source = a.x + ((places.sample[i] * a.height + y) * a.width + x) * a.channels + channel;
    if (valid == Columns) {
      __builtin_memcpy(columns, source, Columns * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < Columns; ++c) {
      columns[c] = c < valid ? source[c] : 0.0f;
    }
  }
}

// sums (kRows, 2 * Lanes) += rows^T @ columns
template <int Lanes>
MIRRORGAN_INLINE void add_products(const float* rows, const float* columns, int64_t count, float* sums) {
  using Float = typename Vector<Lanes>::Float;
  Float total[kRows][2] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Float first = *reinterpret_cast<const Float*>(columns + i * 2 * Lanes);
    const Float second = *reinterpret_cast<const Float*>(columns + i * 2 * Lanes + Lanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float factor = rows[i * kRows + r];
      total[r][0] += factor * first;
      total[r][1] += factor * second;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    Float* row = reinterpret_cast<Float*>(sums + r * 2 * Lanes);
    row[0] += total[r][0];
    row[1] += total[r][1];
  }
}

int64_t column_groups(const Arguments& a, int64_t columns) {
  return (a.channels + columns - 1) / columns;
}

int64_t scratch_floats(const Arguments& a, int64_t columns) {
  return (a.row_groups() * kRows + columns) * kSummed;
}

// Adds the products of the pixels [first, end) to the sums of the taps [first_tap, end_tap). The sums are
// (taps, groups of columns, groups of rows, kRows, 2 * Lanes).
template <int Lanes>
MIRRORGAN_INLINE void sum_pixels(
    const Arguments& a, int64_t first, int64_t end, int64_t first_tap, int64_t end_tap, float* scratch, float* sums) {
  constexpr int64_t kColumns = 2 * Lanes;
  const int64_t row_groups = a.row_groups();
  float* columns = scratch;
  float* rows = scratch + kColumns * kSummed;
  Places places;
  for (; first < end; first += kSummed) {
    const int64_t count = end - first < kSummed ? end - first : kSummed;
    find_places(a, first, count, places);
    pack_rows(a, first, count, rows);
    float* target = sums + first_tap * ((a.channels + kColumns - 1) / kColumns) * row_groups * kRows * kColumns;
    for (int64_t tap = first_tap; tap < end_tap; ++tap) {
      for (int64_t channel = 0; channel < a.channels; channel += kColumns) {
        pack_columns<kColumns>(a, places, count, tap, channel, columns);
        for (int64_t group = 0; group < row_groups; ++group, target += kRows * kColumns) {
          add_products<Lanes>(rows + group * count * kRows, columns, count, target);
        }
      }
    }
  }
}

struct Form {
  int64_t columns;  // of a group
  void (*sum_pixels)(const Arguments&, int64_t, int64_t, int64_t, int64_t, float*, float*);
};

#define MIRRORGAN_FORM(set, lanes, target)                                                                             \
  target void sum_pixels_##set(const Arguments& a, int64_t first, int64_t end, int64_t first_tap, int64_t end_tap,     \
                               float* scratch, float* sums) {                                                          \
    sum_pixels<lanes>(a, first, end, first_tap, end_tap, scratch, sums);                                               \
  }                                                                                                                    \
  constexpr Form form_##set{2 * lanes, sum_pixels_##set};

MIRRORGAN_FOR_EACH_SET(MIRRORGAN_FORM)

// Sums the parts of the pixels in order, and writes the sums in the order of the weight.
void write_weight(const Arguments& a, int64_t columns, const std::vector<float>& sums, int64_t parts) {
  const int64_t taps = a.taps(), groups = column_groups(a, columns), row_groups = a.row_groups();
  const int64_t size = taps * groups * row_groups * kRows * columns;
  parallel_for(a.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      float* out = a.out + o * taps * a.channels;
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t c = 0; c < a.channels; ++c) {
          const int64_t group = (tap * groups + c / columns) * row_groups + o / kRows;
          const float* source = sums.data() + (group * kRows + o % kRows) * columns + c % columns;
          float total = source[0];
          for (int64_t part = 1; part < parts; ++part) {
            total += source[part * size];
          }
          *out++ = total;
        }
      }
    }
  });
}

void run(const Arguments& a) {
  const Form form = MIRRORGAN_CHOSEN(form);
  const int64_t taps = a.taps(), pixels = a.pixels();
  const int64_t size = taps * column_groups(a, form.columns) * a.row_groups() * kRows * form.columns;
  // Small weights come from many pixels, so a task has some of the pixels; large ones from few, so it has some of the taps.
  const int64_t blocks = (pixels + kSummed - 1) / kSummed;
  const bool cuts_pixels = size * std::min(blocks, kMaxParts) <= kMaxFloatsOfParts;
  const int64_t parts = cuts_pixels ? std::max<int64_t>(1, std::min(blocks, kMaxParts)) : 1;
  std::vector<float> sums(static_cast<size_t>(parts * size));
  parallel_for(cuts_pixels ? parts : taps, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<float> workspace;
    float* scratch = workspace.at_least(scratch_floats(a, form.columns));
    for (int64_t task = begin; task < end; ++task) {
      if (cuts_pixels) {
        const int64_t first = blocks * task / parts * kSummed, last = blocks * (task + 1) / parts * kSummed;
        form.sum_pixels(a, first, std::min(last, pixels), 0, taps, scratch, sums.data() + task * size);
      } else {
        form.sum_pixels(a, 0, pixels, task, task + 1, scratch, sums.data());
      }
    }
  });
  write_weight(a, form.columns, sums, parts);
}

Tensor conv2d_weight_gradient_cpu(
    const Tensor& grad_out, const Tensor& x, int64_t kernel_height, int64_t kernel_width, int64_t stride, int64_t padding) {
  MIRRORGAN_CHECK(x.scalar_type() == ScalarType::Float, kOp, "x", x.scalar_type(),
                  "Float, which the compiled CPU kernel takes");
  MIRRORGAN_CHECK(grad_out.scalar_type() == ScalarType::Float, kOp, "grad_out", grad_out.scalar_type(), "Float");
  MIRRORGAN_CHECK(x.dim() == 4, kOp, "x", shape_text(x.sizes()), "(N, C, H, W)");
  MIRRORGAN_CHECK(grad_out.dim() == 4, kOp, "grad_out", shape_text(grad_out.sizes()), "(N, C', H', W')");
  MIRRORGAN_CHECK(kernel_height > 0 && kernel_width > 0, kOp, "kernel", kernel_height, "at least 1");
  MIRRORGAN_CHECK(stride > 0 && padding >= 0, kOp, "stride", stride, "at least 1, with a padding of at least 0");
  const Tensor dense_grad_out = torch::stable::contiguous(grad_out, MemoryFormat::ChannelsLast);
  const Tensor dense_x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Arguments a{};
  a.samples = x.size(0);
  a.channels = x.size(1);
  a.height = x.size(2);
  a.width = x.size(3);
  a.out_channels = grad_out.size(1);
  a.out_height = (a.height + 2 * padding - kernel_height) / stride + 1;
  a.out_width = (a.width + 2 * padding - kernel_width) / stride + 1;
  a.kernel_height = kernel_height;
  a.kernel_width = kernel_width;
  a.stride = stride;
  a.padding = padding;
  MIRRORGAN_CHECK_SHAPE(kOp, "grad_out", grad_out, {a.samples, a.out_channels, a.out_height, a.out_width});
  Tensor out = torch::stable::empty({a.out_channels, a.channels, kernel_height, kernel_width}, ScalarType::Float,
                                    std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (out.numel() == 0) {
    return out;
  }
  a.grad_out = static_cast<const float*>(dense_grad_out.const_data_ptr());
  a.x = static_cast<const float*>(dense_x.const_data_ptr());
  a.out = static_cast<float*>(out.mutable_data_ptr());
  run(a);
  return out;
}

}  // namespace
}  // namespace mirrorgan

STABLE_TORCH_LIBRARY_IMPL(mirrorgan, CPU, library) {
  library.impl("conv2d_weight_gradient", TORCH_BOX(&mirrorgan::conv2d_weight_gradient_cpu));
}
