// The part of the engine that runs on every processor: windows, strips, and products with float32 vectors.

#include "convolution.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "instruction_sets.h"
#include "parallel.h"
#include "products.h"
#include "workspace.h"

namespace mirrorgan::convolution {
namespace {

constexpr int64_t kWindowBytes = 160 * 1024;  // fits into the second-level cache together with the weights of a block
constexpr int64_t kLargeWindowBytes = 1024 * 1024;  // with many weights: only the window fits into that cache

struct Strip {
  int64_t first_sample, samples, first_row, rows;
};

// How the work is cut into tasks. A strip is some rows of a sample, or several whole samples if they are small. With fewer
// strips than threads, the columns of each strip are cut as well. The bits of the result do not depend on the cuts.
struct Cuts {
  int64_t rows, strips_per_sample, samples, strips, column_cuts;
  bool padded;     // whether the window has a column of zeros on each side
  int64_t copies;  // if it does not, it has one copy for each dx
  int64_t pitch, channels;

  Strip strip(const Arguments& a, int64_t index) const {
    if (samples > 1) {
      const int64_t first = index * samples;
      return {first, std::min(samples, a.samples - first), 0, a.height};
    }
    const int64_t first_row = index % strips_per_sample * rows;
    return {index / strips_per_sample, 1, first_row, std::min(rows, a.height - first_row)};
  }
};

Cuts cuts_of(const Arguments& a, int64_t element_size, int64_t threads) {
  Cuts cuts{};
  cuts.padded = a.taps > 1 && a.width % kGroup == 0;
  cuts.copies = a.taps > 1 && !cuts.padded ? 3 : 1;
  cuts.pitch = cuts.padded ? a.width + 2 : a.width;
  cuts.channels = divide_up(a.channels, kDepth) * kDepth;
  const int64_t row_bytes = cuts.pitch * cuts.channels * element_size * cuts.copies;
  const int64_t rows_that_fit = std::max<int64_t>(1, kWindowBytes / row_bytes - 2 * a.halo());
  cuts.strips_per_sample = divide_up(a.height, rows_that_fit);
  cuts.rows = divide_up(a.height, cuts.strips_per_sample);
  cuts.strips_per_sample = divide_up(a.height, cuts.rows);
  if (cuts.strips_per_sample == 1) {
    // Small maps: enough samples for two groups of pixels, the rows of a block.
    const int64_t weight_bytes = a.phases * a.blocks * a.steps * 2 * kTile * element_size;
    const int64_t sample_bytes = (a.height + 2 * a.halo()) * row_bytes;
    const int64_t samples_that_fit = weight_bytes > kManyWeightsBytes ? kLargeWindowBytes / sample_bytes : 1;
    cuts.samples = std::max(divide_up(kPixels, a.height * a.width), samples_that_fit);
  } else {
    cuts.samples = 1;
  }
  cuts.strips = cuts.samples > 1 ? divide_up(a.samples, cuts.samples) : a.samples * cuts.strips_per_sample;
  cuts.column_cuts = std::min(a.blocks, divide_up(threads, cuts.strips));
  return cuts;
}

template <typename compute_t, typename scalar_t>
void copy_pixels(const scalar_t* source, compute_t* target, int64_t pixels, int64_t channels, int64_t filled) {
  if (std::is_same_v<compute_t, scalar_t> && channels == filled) {
    std::memcpy(target, source, static_cast<size_t>(pixels * channels) * sizeof(scalar_t));
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      if constexpr (std::is_same_v<compute_t, scalar_t>) {
        target[p * filled + c] = source[p * channels + c];
      } else {
        target[p * filled + c] = to_float(source[p * channels + c]);
      }
    }
    std::fill(target + p * filled + channels, target + (p + 1) * filled, compute_t{});
  }
}

// Copies one row of the window, shifted to the left by `shift` pixels.
template <typename compute_t, typename scalar_t>
void copy_row(const Arguments& a, const Cuts& cuts, int64_t sample, int64_t row, int64_t shift, compute_t* target) {
  const int64_t filled = cuts.channels;
  if (row < 0 || row >= a.height) {
    std::fill(target, target + cuts.pitch * filled, compute_t{});
    return;
  }
  const auto* source = static_cast<const scalar_t*>(a.x) + (sample * a.height + row) * a.width * a.channels;
  const int64_t left = cuts.padded ? 1 : std::max<int64_t>(0, -shift);
  const int64_t skipped = cuts.padded ? 0 : std::max<int64_t>(0, shift);
  const int64_t pixels = cuts.padded ? a.width : a.width - left - skipped;
  std::fill(target, target + left * filled, compute_t{});
  copy_pixels(source + skipped * a.channels, target + left * filled, pixels, a.channels, filled);
  std::fill(target + (left + pixels) * filled, target + cuts.pitch * filled, compute_t{});
}

template <typename compute_t, typename scalar_t>
Window<compute_t> fill_window(const Arguments& a, const Cuts& cuts, const Strip& strip, Workspace<compute_t>& workspace) {
  const int64_t halo = a.halo(), rows_of_sample = strip.rows + 2 * halo, rows = strip.samples * rows_of_sample;
  const int64_t size = (rows * cuts.pitch + kGroup) * cuts.channels;  // the last group may read past the last row
  compute_t* start = workspace.at_least(cuts.copies * size);
  for (int64_t copy = 0; copy < cuts.copies; ++copy) {
    compute_t* target = start + copy * size;
    for (int64_t row = 0; row < rows; ++row, target += cuts.pitch * cuts.channels) {
      copy_row<compute_t, scalar_t>(a, cuts, strip.first_sample + row / rows_of_sample,
                                    strip.first_row + row % rows_of_sample - halo, cuts.copies == 3 ? copy - 1 : 0,
                                    target);
    }
    std::fill(target, target + kGroup * cuts.channels, compute_t{});
  }
  const int64_t next = cuts.copies == 3 ? size : cuts.padded ? cuts.channels : 0;
  return {{start, start + next, start + 2 * next}, cuts.pitch, halo, cuts.channels};
}

void list_groups(const Arguments& a, const Cuts& cuts, const Strip& strip, std::vector<Group>& groups) {
  groups.clear();
  const int64_t pixels = strip.rows * a.width;
  for (int64_t s = 0; s < strip.samples; ++s) {
    const int64_t start = s * (strip.rows + 2 * a.halo()) * cuts.pitch;
    for (int64_t pixel = 0; pixel < pixels; pixel += kGroup) {
      const int64_t row = pixel / a.width, column = pixel % a.width;
      groups.push_back({strip.first_sample + s, strip.first_row + row, column, std::min(kGroup, pixels - pixel),
                        start + (cuts.padded ? row * cuts.pitch + column : pixel)});
    }
  }
}

// --- products in float32 ---------------------------------------------------------------------------------------------

template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void write_group(
    const Arguments& a,
    Epilogue epilogue,
    const Group& group,
    const Phase& phase,
    int64_t block,
    const float* sums,
    const float* bias) {
  Cursor cursor = cursor_of(a, group, phase);
  for (int64_t p = 0; p < group.count; ++p, sums += kHalf, cursor.advance()) {
    if (epilogue == Epilogue::glu) {
      write_half<scalar_t, Lanes>(a, epilogue, sums, bias, block * kHalf, cursor.at);
      continue;
    }
    write_half<scalar_t, Lanes>(a, epilogue, sums, bias, block * kColumns, cursor.at);
    if (a.out_channels - block * kColumns > kHalf) {
      write_half<scalar_t, Lanes>(
          a, epilogue, sums + kPixels * kHalf, bias + kHalf, block * kColumns + kHalf, cursor.at);
    }
  }
}

template <typename scalar_t, int Lanes, typename Product>
MIRRORGAN_INLINE void convolve_strip(
    const Arguments& a,
    Epilogue epilogue,
    const Window<typename Product::compute_t>& window,
    const Group* groups,
    int64_t group_count,
    const Phase& phase,
    int64_t first_block,
    int64_t end_block,
    typename Product::compute_t* wide) {
  float sums[2 * kPixels * kHalf], bias[kColumns];
  const int64_t panel = a.steps * 2 * kTile;
  for (int64_t block = first_block; block < end_block; ++block) {
    const auto* weight = static_cast<const scalar_t*>(a.weight) + (phase.index * a.blocks + block) * panel;
    const auto* columns = Product::panel(weight, wide, a.steps * 2);
    read_bias(a, epilogue, block, bias);
    const bool one_half = epilogue != Epilogue::glu && a.out_channels - block * kColumns <= kHalf;
    for (int64_t g = 0; g < group_count; ++g) {
      for (int64_t row = 0; row < kGroup; row += Product::kRows) {
        const int64_t offset = groups[g].offset + row;
        if (one_half) {
          Product::template multiply<1>(window, offset, phase, columns, sums + row * kHalf);
          continue;
        }
        for (int64_t half = 0; half < 2; half += Product::kHalves) {
          Product::template multiply<Product::kHalves>(
              window, offset, phase, columns + half * kTile, sums + (half * kPixels + row) * kHalf);
        }
      }
      write_group<scalar_t, Lanes>(a, epilogue, groups[g], phase, block, sums, bias);
    }
  }
}

template <typename compute_t>
using StripFunction = void (*)(
    const Arguments&,
    Epilogue,
    const Window<compute_t>&,
    const Group*,
    int64_t,
    const Phase&,
    int64_t,
    int64_t,
    compute_t*);

#define MIRRORGAN_STRIP_OF(name, scalar_t, lanes, target, ...)                                                           \
  target void name(const Arguments& a, Epilogue epilogue, const Window<__VA_ARGS__::compute_t>& window,                  \
                   const Group* groups, int64_t group_count, const Phase& phase, int64_t first_block, int64_t end_block, \
                   __VA_ARGS__::compute_t* wide) {                                                                       \
    convolve_strip<scalar_t, lanes, __VA_ARGS__>(a, epilogue, window, groups, group_count, phase, first_block,           \
                                                 end_block, wide);                                                       \
  }

#define MIRRORGAN_STRIP(name, scalar_t, lanes, rows, halves, target) \
  MIRRORGAN_STRIP_OF(name, scalar_t, lanes, target, InFloats<scalar_t, lanes, rows, halves>)

// The number of sums in registers covers the latency of a multiply-add.
MIRRORGAN_STRIP(strip_float_baseline, float, 4, 2, 1, )
MIRRORGAN_STRIP(strip_bfloat16_baseline, bfloat16_bits, 4, 2, 1, )
#if defined(MIRRORGAN_X86)
MIRRORGAN_STRIP(strip_float_avx2, float, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_STRIP(strip_bfloat16_avx2, bfloat16_bits, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_STRIP(strip_float_avx512, float, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
MIRRORGAN_STRIP(strip_bfloat16_avx512, bfloat16_bits, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
MIRRORGAN_STRIP_OF(strip_pairs_avx512, bfloat16_bits, 16, MIRRORGAN_TARGET_AVX512, InPairs)
#endif

template <typename scalar_t>
StripFunction<float> strip_function() {
  return std::is_same_v<scalar_t, float> ? MIRRORGAN_CHOSEN(strip_float) : MIRRORGAN_CHOSEN(strip_bfloat16);
}

// --- the whole convolution --------------------------------------------------------------------------------------------

// Cuts the work into tasks, fills the window of each, and calls work(window, groups, first_block, end_block).
template <typename compute_t, typename scalar_t, typename Work>
void for_strips(const Arguments& a, const Work& work) {
  const Cuts cuts = cuts_of(a, sizeof(compute_t), torch::stable::get_num_threads());
  const int64_t blocks = divide_up(a.blocks, cuts.column_cuts);
  parallel_for(cuts.strips * cuts.column_cuts, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<compute_t> workspace;
    static thread_local std::vector<Group> groups;
    for (int64_t task = begin; task < end; ++task) {
      const Strip strip = cuts.strip(a, task / cuts.column_cuts);
      const int64_t first_block = task % cuts.column_cuts * blocks, end_block = std::min(a.blocks, first_block + blocks);
      if (first_block >= end_block) {
        continue;
      }
      const Window<compute_t> window = fill_window<compute_t, scalar_t>(a, cuts, strip, workspace);
      list_groups(a, cuts, strip, groups);
      work(window, groups, first_block, end_block);
    }
  });
}

}  // namespace

template <typename scalar_t>
void convolve(const Arguments& a, Epilogue epilogue) {
  if (a.products > 0) {
    convolve_winograd<scalar_t>(a, epilogue);
    return;
  }
#if defined(MIRRORGAN_X86)
  if constexpr (std::is_same_v<scalar_t, bfloat16_bits>) {
    if (chosen_instruction_set() == InstructionSet::amx) {
      for_strips<bfloat16_bits, bfloat16_bits>(
          a, [&](const auto& window, const auto& groups, int64_t first_block, int64_t end_block) {
            convolve_strip_amx(a, epilogue, window, groups, first_block, end_block);
          });
      return;
    }
    if (chosen_instruction_set() == InstructionSet::avx512_bf16) {
      for_strips<bfloat16_bits, bfloat16_bits>(
          a, [&](const auto& window, const auto& groups, int64_t first_block, int64_t end_block) {
            for (int64_t phase = 0; phase < a.phases; ++phase) {
              strip_pairs_avx512(a, epilogue, window, groups.data(), static_cast<int64_t>(groups.size()),
                                 phase_of(a, phase), first_block, end_block, nullptr);
            }
          });
      return;
    }
  }
#endif
  const StripFunction<float> convolve_strip = strip_function<scalar_t>();
  for_strips<float, scalar_t>(
      a, [&](const auto& window, const auto& groups, int64_t first_block, int64_t end_block) {
        static thread_local Workspace<float> wide;
        float* panel = std::is_same_v<scalar_t, float> ? nullptr : wide.at_least(a.steps * 2 * kTile);
        for (int64_t phase = 0; phase < a.phases; ++phase) {
          convolve_strip(a, epilogue, window, groups.data(), static_cast<int64_t>(groups.size()),
                         phase_of(a, phase), first_block, end_block, panel);
        }
      });
}

template void convolve<float>(const Arguments&, Epilogue);
template void convolve<bfloat16_bits>(const Arguments&, Epilogue);

}  // namespace mirrorgan::convolution
