// 3x3 convolutions in float32 with fewer products: Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2016), and the same idea on the map upsampled by two.
//
// Two results side by side are, in one dimension, sums of a few products of differences of the inputs with sums of the taps;
// in two dimensions, that of rows is nested in that of columns. A tile of 2x2 results takes 16 products for each pair of
// channels instead of 36, and 9 instead of 16 on the upsampled map. Each of the 16 or 9 is a matrix product of tiles by
// channels, all of them together the work of a multiplication unit; the sums of inputs and of results around it are few.
//
// A result is computed from its own tile alone, always in the same order: no cut of the work changes a bit of it.

#include "convolution.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "instruction_sets.h"
#include "products.h"
#include "workspace.h"

namespace mirrorgan::convolution {
namespace {

constexpr int64_t kSums = kPixels * kHalf;    // of one half: two products of a group of tiles
constexpr int64_t kSpreadBytes = 128 * 1024;  // of a task's inputs, beside the weights of a block in a second-level cache
// Where the weights of all blocks are too many to stay there, fewer tasks are better, whose inputs just stay there themselves.
constexpr int64_t kManyWeightsBytes = 1024 * 1024;
constexpr int64_t kLargeSpreadBytes = 1024 * 1024;
// Floats between the matrices of two products: a tile writes to all of them in turn, in other sets of the first-level cache.
constexpr int64_t kPadding = 16;

// Three taps with zeros around the map: results 0 and 1 from the inputs -1 to 2.
struct Plain {
  static constexpr int kInputs = 4, kStep = 2, kProducts = 4;

  template <typename Float>
  static MIRRORGAN_INLINE void spread(const Float (&d)[kInputs], Float (&v)[kProducts]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }

  template <typename Float>
  static MIRRORGAN_INLINE void gather(const Float (&m)[kProducts], Float (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// The same taps on the map upsampled by two: the two results that input 0 becomes, from the inputs -1 to 1.
struct Upsampled {
  static constexpr int kInputs = 3, kStep = 1, kProducts = 3;

  template <typename Float>
  static MIRRORGAN_INLINE void spread(const Float (&d)[kInputs], Float (&v)[kProducts]) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
  }

  template <typename Float>
  static MIRRORGAN_INLINE void gather(const Float (&m)[kProducts], Float (&y)[2]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

// All tiles of all samples, one after the other in rows.
struct Tiles {
  int64_t rows, columns;  // of a sample

  explicit Tiles(const Arguments& a) : rows((a.scale() * a.height + 1) / 2), columns((a.scale() * a.width + 1) / 2) {}
};

// What the products of some tiles take: of each product a matrix (tiles, channels filled up to whole steps).
struct Spread {
  float* start;
  int64_t channels;
  int64_t product;  // from a product's matrix to the next

  static int64_t channels_of(const Arguments& a) {
    return a.steps * kDepth;
  }
};

// One column of `Inputs` pixels of the map, as products take it. `channels` are left from the first that is loaded.
template <int Lanes, typename Form>
MIRRORGAN_INLINE void spread_column(
    const float* const (&rows)[Form::kInputs],
    int64_t offset,
    bool inside,
    int64_t channels,
    typename Vector<Lanes>::Float (&out)[Form::kProducts]) {
  using Float = typename Vector<Lanes>::Float;
  Float d[Form::kInputs];
#pragma GCC unroll 4
  for (int i = 0; i < Form::kInputs; ++i) {
    d[i] = Float{};
    if (inside && rows[i] != nullptr) {
      if (channels >= Lanes) {
        load<Lanes>(rows[i] + offset, d[i]);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          d[i][c] = rows[i][offset + c];
        }
      }
    }
  }
  Form::spread(d, out);
}

// `count` tiles of one row, from `first` on, into the matrices from `out` on.
template <int Lanes, typename Form>
MIRRORGAN_INLINE void spread_row(
    const Arguments& a, const float* const (&rows)[Form::kInputs], int64_t first, int64_t count, const Spread& spread,
    float* out) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t c = 0; c < spread.channels; c += Lanes) {
    const int64_t channels = a.channels - c;
    Float columns[Form::kInputs][Form::kProducts];
    int64_t column = first * Form::kStep - 1;
#pragma GCC unroll 4
    for (int i = Form::kStep; i < Form::kInputs; ++i, ++column) {
      spread_column<Lanes, Form>(rows, column * a.channels + c, column >= 0 && column < a.width, channels, columns[i]);
    }
    float* tile = out + c;
    for (int64_t t = 0; t < count; ++t, tile += spread.channels) {
#pragma GCC unroll 4
      for (int i = 0; i + Form::kStep < Form::kInputs; ++i) {
#pragma GCC unroll 4
        for (int p = 0; p < Form::kProducts; ++p) {
          columns[i][p] = columns[i + Form::kStep][p];
        }
      }
#pragma GCC unroll 4
      for (int i = Form::kInputs - Form::kStep; i < Form::kInputs; ++i, ++column) {
        spread_column<Lanes, Form>(rows, column * a.channels + c, column < a.width, channels, columns[i]);
      }
#pragma GCC unroll 4
      for (int p = 0; p < Form::kProducts; ++p) {
        Float d[Form::kInputs], v[Form::kProducts];
#pragma GCC unroll 4
        for (int i = 0; i < Form::kInputs; ++i) {
          d[i] = columns[i][p];
        }
        Form::spread(d, v);
#pragma GCC unroll 4
        for (int q = 0; q < Form::kProducts; ++q) {
          store<Lanes>(v[q], tile + (p * Form::kProducts + q) * spread.product);
        }
      }
    }
  }
}

// The tiles [first, first + count).
template <int Lanes, typename Form>
MIRRORGAN_INLINE void spread_tiles(const Arguments& a, int64_t first, int64_t count, const Spread& spread) {
  const Tiles tiles(a);
  float* out = spread.start;
  while (count > 0) {
    const int64_t column = first % tiles.columns, row = first / tiles.columns % tiles.rows;
    const int64_t of_row = count < tiles.columns - column ? count : tiles.columns - column;
    const float* map = static_cast<const float*>(a.x) + first / tiles.columns / tiles.rows * a.height * a.width * a.channels;
    const float* rows[Form::kInputs];
    for (int64_t i = 0; i < Form::kInputs; ++i) {
      const int64_t y = row * Form::kStep - 1 + i;
      rows[i] = y >= 0 && y < a.height ? map + y * a.width * a.channels : nullptr;
    }
    spread_row<Lanes, Form>(a, rows, column, of_row, spread, out);
    out += of_row * spread.channels;
    first += of_row;
    count -= of_row;
  }
}

// Where the sums of a product are, in the block of all of them: that of values or first channels; the other half is as far
// from there as everywhere.
MIRRORGAN_INLINE int64_t sums_of(int64_t product) {
  return product / 2 * 2 * kSums + product % 2 * kGroup * kHalf;
}

// The four results of a tile from its products, into the places of the first four.
template <int Lanes, typename Form>
MIRRORGAN_INLINE void gather_tile(float* sums, int64_t halves) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t half = 0; half < halves; ++half, sums += kSums) {
    for (int64_t c = 0; c < kHalf; c += Lanes) {
      Float rows[Form::kProducts][2];
#pragma GCC unroll 4
      for (int p = 0; p < Form::kProducts; ++p) {
        Float m[Form::kProducts];
#pragma GCC unroll 4
        for (int q = 0; q < Form::kProducts; ++q) {
          load<Lanes>(sums + sums_of(p * Form::kProducts + q) + c, m[q]);
        }
        Form::gather(m, rows[p]);
      }
#pragma GCC unroll 2
      for (int right = 0; right < 2; ++right) {
        Float m[Form::kProducts], y[2];
#pragma GCC unroll 4
        for (int p = 0; p < Form::kProducts; ++p) {
          m[p] = rows[p][right];
        }
        Form::gather(m, y);
        store<Lanes>(y[0], sums + sums_of(right) + c);
        store<Lanes>(y[1], sums + sums_of(2 + right) + c);
      }
    }
  }
}

// A group of tiles: the products of a block, and the results of each tile.
template <int Lanes, int Rows, int Halves, typename Form>
MIRRORGAN_INLINE void convolve_group(
    const Arguments& a,
    Epilogue epilogue,
    const Spread& spread,
    int64_t offset,
    int64_t first,
    int64_t count,
    int64_t block,
    const float* bias) {
  constexpr int64_t kAll = Form::kProducts * Form::kProducts;
  alignas(64) float sums[(kAll + 1) / 2 * 2 * kSums];
  const bool one_half = epilogue != Epilogue::glu && a.out_channels - block * kColumns <= kHalf;
  const int64_t panel = a.steps * 2 * kTile;
  const Phase phase{0, 1, {}, {}};
  for (int64_t product = 0; product < kAll; ++product) {
    const float* columns = static_cast<const float*>(a.weight) + (product * a.blocks + block) * panel;
    float* matrix = spread.start + product * spread.product;
    const Window<float> window{{matrix, matrix, matrix}, 0, 0, spread.channels};
    float* sums_here = sums + sums_of(product);
    for (int64_t row = 0; row < count; row += Rows) {
      if (one_half) {
        multiply<Lanes, Rows, 1>(window, offset + row, phase, columns, sums_here + row * kHalf);
        continue;
      }
      for (int64_t half = 0; half < 2; half += Halves) {
        multiply<Lanes, Rows, Halves>(
            window, offset + row, phase, columns + half * kTile, sums_here + half * kSums + row * kHalf);
      }
    }
  }
  const Tiles tiles(a);
  const int64_t height = a.scale() * a.height, width = a.scale() * a.width;
  for (int64_t t = 0; t < count; ++t) {
    gather_tile<Lanes, Form>(sums + t * kHalf, one_half ? 1 : 2);
    const int64_t tile = first + t, row = tile / tiles.columns % tiles.rows * 2, column = tile % tiles.columns * 2;
    const int64_t sample = tile / tiles.columns / tiles.rows;
    for (int64_t of_tile = 0; of_tile < 4; ++of_tile) {
      const int64_t y = row + of_tile / 2, x = column + of_tile % 2;
      if (y >= height || x >= width) {
        continue;
      }
      const int64_t at = ((sample * height + y) * a.out_pitch + x) * a.out_channels;
      const float* values = sums + sums_of(of_tile) + t * kHalf;
      if (epilogue == Epilogue::glu) {
        write_half<float, Lanes>(a, epilogue, values, bias, block * kHalf, at);
        continue;
      }
      write_half<float, Lanes>(a, epilogue, values, bias, block * kColumns, at);
      if (!one_half) {
        write_half<float, Lanes>(a, epilogue, values + kSums, bias + kHalf, block * kColumns + kHalf, at);
      }
    }
  }
}

template <int Lanes, int Rows, int Halves, typename Form>
MIRRORGAN_INLINE void convolve_tiles(
    const Arguments& a,
    Epilogue epilogue,
    const Spread& spread,
    int64_t first,
    int64_t count,
    int64_t first_block,
    int64_t end_block) {
  spread_tiles<Lanes, Form>(a, first, count, spread);
  for (int64_t block = first_block; block < end_block; ++block) {
    float bias[kColumns];
    read_bias(a, epilogue, block, bias);
    for (int64_t t = 0; t < count; t += kGroup) {
      convolve_group<Lanes, Rows, Halves, Form>(a, epilogue, spread, t, first + t, count - t < kGroup ? count - t : kGroup,
                                                block, bias);
    }
  }
}

using TilesFunction = void (*)(const Arguments&, Epilogue, const Spread&, int64_t, int64_t, int64_t, int64_t);

#define MIRRORGAN_TILES(name, lanes, rows, halves, target)                                                           \
  template <typename Form>                                                                                           \
  target void name(const Arguments& a, Epilogue epilogue, const Spread& spread, int64_t first, int64_t count,        \
                   int64_t first_block, int64_t end_block) {                                                         \
    convolve_tiles<lanes, rows, halves, Form>(a, epilogue, spread, first, count, first_block, end_block);            \
  }

MIRRORGAN_TILES(tiles_baseline, 4, 2, 1, )
#if defined(MIRRORGAN_X86)
MIRRORGAN_TILES(tiles_avx2, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_TILES(tiles_avx512, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
#endif

template <typename Form>
TilesFunction tiles_function() {
  switch (chosen_instruction_set()) {
#if defined(MIRRORGAN_X86)
    case InstructionSet::amx:
    case InstructionSet::avx512_bf16:
    case InstructionSet::avx512:
      return tiles_avx512<Form>;
    case InstructionSet::avx2:
      return tiles_avx2<Form>;
#endif
    default:
      return tiles_baseline<Form>;
  }
}

int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

}  // namespace

void convolve_winograd(const Arguments& a, Epilogue epilogue) {
  const TilesFunction convolve_tiles = a.phases == 4 ? tiles_function<Upsampled>() : tiles_function<Plain>();
  const Tiles tiles(a);
  const int64_t threads = torch::stable::get_num_threads(), total = a.samples * tiles.rows * tiles.columns;
  const bool many_weights = a.products * a.blocks * a.steps * 2 * kTile * 4 > kManyWeightsBytes;
  const int64_t tile_bytes = a.products * Spread::channels_of(a) * 4;
  const int64_t groups_that_fit =
      std::max<int64_t>(1, (many_weights ? kLargeSpreadBytes : kSpreadBytes) / (tile_bytes * kGroup));
  // Many weights are rather cut between the threads than read by each.
  int64_t tasks = divide_up(total, groups_that_fit * kGroup);
  tasks = many_weights ? tasks : divide_up(tasks, threads) * threads;
  const int64_t count = divide_up(divide_up(total, tasks), kGroup) * kGroup;
  tasks = divide_up(total, count);
  const int64_t column_cuts = std::min(a.blocks, divide_up(threads, tasks));
  const int64_t blocks = divide_up(a.blocks, column_cuts);
  torch::stable::parallel_for(0, tasks * column_cuts, 1, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<float> workspace;
    const int64_t channels = Spread::channels_of(a), product = count * channels + kPadding;
    const Spread spread{workspace.at_least(a.products * product), channels, product};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / column_cuts * count, first_block = task % column_cuts * blocks;
      convolve_tiles(a, epilogue, spread, first, std::min(count, total - first), first_block,
                     std::min(a.blocks, first_block + blocks));
    }
  });
}

}  // namespace mirrorgan::convolution
