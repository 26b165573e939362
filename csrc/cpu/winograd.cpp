// 3x3 convolutions with fewer products: Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016), and the same idea for the map upsampled by two.
//
// In one dimension, neighboring results are sums of a few products, each of a sum of inputs and a sum of taps. In two
// dimensions the same is done for the rows and then for the columns. For each pair of input and output channels, a tile of
// 4x4 results takes 36 products instead of 144, a tile of 2x2 results takes 16 instead of 36, and on the upsampled map 2x2
// results take 9 instead of 16. Over all tiles and channels, each of these products is a matrix product. There are three
// steps:
//
//     spread     sums of each tile's inputs, one for each product
//     multiply   (tiles, channels) times (channels, columns), for each product
//     gather     sums of the products, which are the results, and the epilogue
//
// A result is computed from its own tile only, always in the same order. So the bits do not depend on how the work is cut.

#include "convolution.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "instruction_sets.h"
#include "parallel.h"
#include "products.h"
#include "workspace.h"

namespace mirrorgan::convolution {
namespace {

constexpr int64_t kSums = kPixels * kHalf;    // from the sums of a block's first half to those of its second half
constexpr int64_t kSpreadBytes = 128 * 1024;  // a task's inputs fit into the second-level cache with the weights of a block
constexpr int64_t kLargeSpreadBytes = 1024 * 1024;  // with many weights: only the inputs fit into that cache
// Elements between the matrices of two products. A tile writes to all matrices in turn; so they are in different sets
// of the first-level cache.
constexpr int64_t kPadding = 32;
// How many tiles ahead inputs are prefetched. The processor does not do it: a few channels of each pixel of a row are not a
// stream that it recognizes.
constexpr int64_t kTilesAhead = 8;

// Arrays of vectors for the forms below. A deduced type would not have Vector's alignment.
template <int Lanes, int count>
using Vectors = typename Vector<Lanes>::Float[count];

// Three taps with padding 1, in float32: results 0 to 3 from the inputs -1 to 4. The products are values of polynomials
// at 0, 5/8, -5/8, 3/2, -3/2 and infinity. There float32 loses less precision than at the usual 1 and 2, and powers of
// these numbers are exact.
struct FourByFour {
  static constexpr int kInputs = 6, kResults = 4, kStep = 4, kProducts = 6;
  static constexpr float kNear = 0.625f, kFar = 1.5f, kNear2 = kNear * kNear, kFar2 = kFar * kFar;

  template <int Lanes, typename Float = typename Vector<Lanes>::Float>
  static MIRRORGAN_INLINE void spread(const Vectors<Lanes, kInputs>& d, Vectors<Lanes, kProducts>& v) {
    const Float near_even = d[4] - d[2] * kFar2, near_odd = d[3] - d[1] * kFar2;
    const Float far_even = d[4] - d[2] * kNear2, far_odd = d[3] - d[1] * kNear2;
    v[0] = d[0] * (kNear2 * kFar2) + (d[4] - d[2] * (kNear2 + kFar2));
    v[1] = near_even + near_odd * kNear;
    v[2] = near_even - near_odd * kNear;
    v[3] = far_even + far_odd * kFar;
    v[4] = far_even - far_odd * kFar;
    v[5] = d[1] * (kNear2 * kFar2) + (d[5] - d[3] * (kNear2 + kFar2));
  }

  template <int Lanes, typename Float = typename Vector<Lanes>::Float>
  static MIRRORGAN_INLINE void gather(const Vectors<Lanes, kProducts>& m, Vectors<Lanes, kResults>& y) {
    const Float near_even = m[1] + m[2], near_odd = m[1] - m[2], far_even = m[3] + m[4], far_odd = m[3] - m[4];
    y[0] = m[0] + near_even + far_even;
    y[1] = near_odd * kNear + far_odd * kFar;
    y[2] = near_even * kNear2 + far_even * kFar2;
    y[3] = near_odd * (kNear2 * kNear) + (far_odd * (kFar2 * kFar) + m[5]);
  }
};

// Three taps in bfloat16: results 0 and 1 from the inputs -1 to 2. With 4x4 results bfloat16 would lose three times as much
// precision.
struct TwoByTwo {
  static constexpr int kInputs = 4, kResults = 2, kStep = 2, kProducts = 4;

  template <int Lanes>
  static MIRRORGAN_INLINE void spread(const Vectors<Lanes, kInputs>& d, Vectors<Lanes, kProducts>& v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }

  template <int Lanes>
  static MIRRORGAN_INLINE void gather(const Vectors<Lanes, kProducts>& m, Vectors<Lanes, kResults>& y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// Three taps on the map upsampled by two: the two results that input 0 becomes, from the inputs -1 to 1.
struct Upsampled {
  static constexpr int kInputs = 3, kResults = 2, kStep = 1, kProducts = 3;

  template <int Lanes>
  static MIRRORGAN_INLINE void spread(const Vectors<Lanes, kInputs>& d, Vectors<Lanes, kProducts>& v) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
  }

  template <int Lanes>
  static MIRRORGAN_INLINE void gather(const Vectors<Lanes, kProducts>& m, Vectors<Lanes, kResults>& y) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

// The tiles of all samples, in row-major order.
struct Tiles {
  int64_t rows, columns;  // of one sample

  Tiles(const Arguments& a, int64_t results)
      : rows(divide_up(a.scale() * a.height, results)), columns(divide_up(a.scale() * a.width, results)) {}
};

// The spread inputs of some tiles: for each product a matrix (tiles, channels padded to whole steps).
template <typename compute_t>
struct Spread {
  compute_t* start;
  int64_t channels;
  int64_t product;  // elements from a product's matrix to the next
};

// Spreads one column of a tile's inputs. `channels` is how many channels are left from the first one that is loaded.
template <int Lanes, typename Form, typename scalar_t>
MIRRORGAN_INLINE void spread_column(
    const Arguments& a,
    const scalar_t* const (&rows)[Form::kInputs],
    int64_t offset,
    bool inside,
    int64_t channels,
    typename Vector<Lanes>::Float (&out)[Form::kProducts]) {
  using Float = typename Vector<Lanes>::Float;
  Float d[Form::kInputs];
#pragma GCC unroll 6
  for (int i = 0; i < Form::kInputs; ++i) {
    d[i] = Float{};
    if (inside && rows[i] != nullptr) {
      if (channels >= Lanes) {
        __builtin_prefetch(rows[i] + offset + kTilesAhead * Form::kStep * a.channels);
        load<Lanes>(rows[i] + offset, d[i]);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          d[i][c] = to_float(rows[i][offset + c]);
        }
      }
    }
  }
  Form::template spread<Lanes>(d, out);
}

// Spreads `count` tiles of one row, from `first` on, into the matrices from `out` on.
template <int Lanes, typename Form, typename scalar_t, typename compute_t>
MIRRORGAN_INLINE void spread_row(
    const Arguments& a,
    const scalar_t* const (&rows)[Form::kInputs],
    int64_t first,
    int64_t count,
    const Spread<compute_t>& spread,
    compute_t* out) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t c = 0; c < spread.channels; c += Lanes) {
    const int64_t channels = a.channels - c;
    Float columns[Form::kInputs][Form::kProducts];
    int64_t column = first * Form::kStep - 1;
#pragma GCC unroll 6
    for (int i = Form::kStep; i < Form::kInputs; ++i, ++column) {
      spread_column<Lanes, Form>(a, rows, column * a.channels + c, column >= 0 && column < a.width, channels, columns[i]);
    }
    compute_t* tile = out + c;
    for (int64_t t = 0; t < count; ++t, tile += spread.channels) {
#pragma GCC unroll 6
      for (int i = 0; i + Form::kStep < Form::kInputs; ++i) {
#pragma GCC unroll 6
        for (int p = 0; p < Form::kProducts; ++p) {
          columns[i][p] = columns[i + Form::kStep][p];
        }
      }
#pragma GCC unroll 6
      for (int i = Form::kInputs - Form::kStep; i < Form::kInputs; ++i, ++column) {
        spread_column<Lanes, Form>(a, rows, column * a.channels + c, column < a.width, channels, columns[i]);
      }
#pragma GCC unroll 6
      for (int p = 0; p < Form::kProducts; ++p) {
        Float d[Form::kInputs], v[Form::kProducts];
#pragma GCC unroll 6
        for (int i = 0; i < Form::kInputs; ++i) {
          d[i] = columns[i][p];
        }
        Form::template spread<Lanes>(d, v);
#pragma GCC unroll 6
        for (int q = 0; q < Form::kProducts; ++q) {
          store<Lanes>(v[q], tile + (p * Form::kProducts + q) * spread.product);
        }
      }
    }
  }
}

// Spreads the tiles [first, first + count).
template <int Lanes, typename Form, typename scalar_t, typename compute_t>
MIRRORGAN_INLINE void spread_tiles(const Arguments& a, int64_t first, int64_t count, const Spread<compute_t>& spread) {
  const Tiles tiles(a, Form::kResults);
  compute_t* out = spread.start;
  while (count > 0) {
    const int64_t column = first % tiles.columns, row = first / tiles.columns % tiles.rows;
    const int64_t in_row = count < tiles.columns - column ? count : tiles.columns - column;
    const int64_t sample = first / tiles.columns / tiles.rows;
    const scalar_t* map = static_cast<const scalar_t*>(a.x) + sample * a.height * a.width * a.channels;
    const scalar_t* rows[Form::kInputs];
    for (int64_t i = 0; i < Form::kInputs; ++i) {
      const int64_t y = row * Form::kStep - 1 + i;
      rows[i] = y >= 0 && y < a.height ? map + y * a.width * a.channels : nullptr;
    }
    spread_row<Lanes, Form>(a, rows, column, in_row, spread, out);
    out += in_row * spread.channels;
    first += in_row;
    count -= in_row;
  }
}

// The index of the sums of a product for `group` tiles, in the block of all products. These are the sums of the first
// half of the columns; those of the second half are kSums further.
template <int64_t group>
MIRRORGAN_INLINE int64_t sums_of(int64_t product) {
  constexpr int64_t kGroupsPerBlock = kPixels / group;
  return product / kGroupsPerBlock * 2 * kSums + product % kGroupsPerBlock * group * kHalf;
}

// One way to compute the products of a group: `count` tiles from `offset` on, with the weights of a block, in which the
// panels of two products are `panel` apart.
template <typename scalar_type, int Lanes, typename Product>
struct InVectors {
  using scalar_t = scalar_type;
  using compute_t = typename Product::compute_t;
  static constexpr int kLanes = Lanes;
  static constexpr int64_t kGroup = 8;  // tiles, whose sums fit into the first-level cache
  static constexpr bool kWidens = Product::kWidens;

  static MIRRORGAN_INLINE void widen(const scalar_t* weight, float* wide, int64_t tiles) {
    if constexpr (kWidens) {
      Product::panel(weight, wide, tiles);
    }
  }

  static MIRRORGAN_INLINE void multiply(
      const Spread<compute_t>& spread,
      int64_t offset,
      int64_t count,
      int64_t products,
      const compute_t* weight,
      int64_t panel,
      bool one_half,
      float* sums) {
    const Phase phase{0, 1, {}, {}};
    for (int64_t product = 0; product < products; ++product, weight += panel) {
      const compute_t* matrix = spread.start + product * spread.product;
      const Window<compute_t> window{{matrix, matrix, matrix}, 0, 0, spread.channels};
      float* product_sums = sums + sums_of<kGroup>(product);
      for (int64_t row = 0; row < count; row += Product::kRows) {
        if (one_half) {
          Product::template multiply<1>(window, offset + row, phase, weight, product_sums + row * kHalf);
          continue;
        }
        for (int64_t half = 0; half < 2; half += Product::kHalves) {
          Product::template multiply<Product::kHalves>(
              window, offset + row, phase, weight + half * kTile, product_sums + half * kSums + row * kHalf);
        }
      }
    }
  }
};

#if defined(MIRRORGAN_X86)
struct InMatrixTiles {
  using scalar_t = bfloat16_bits;
  using compute_t = bfloat16_bits;
  static constexpr int kLanes = 16;
  static constexpr int64_t kGroup = kPixels;
  static constexpr bool kWidens = false;

  static MIRRORGAN_INLINE void multiply(
      const Spread<bfloat16_bits>& spread,
      int64_t offset,
      int64_t count,
      int64_t products,
      const bfloat16_bits* weight,
      int64_t panel,
      bool,
      float* sums) {
    multiply_products_amx(spread.start + offset * spread.channels, spread.product, spread.channels, count, products, weight,
                          panel, sums);
  }
};
#endif

// Computes the results of a tile from its products, and writes them over the first products.
template <int Lanes, int64_t group, typename Form>
MIRRORGAN_INLINE void gather_tile(float* sums, int64_t halves) {
  using Float = typename Vector<Lanes>::Float;
  for (int64_t half = 0; half < halves; ++half, sums += kSums) {
    for (int64_t c = 0; c < kHalf; c += Lanes) {
      Float rows[Form::kProducts][Form::kResults];
#pragma GCC unroll 6
      for (int p = 0; p < Form::kProducts; ++p) {
        Float m[Form::kProducts];
#pragma GCC unroll 6
        for (int q = 0; q < Form::kProducts; ++q) {
          load<Lanes>(sums + sums_of<group>(p * Form::kProducts + q) + c, m[q]);
        }
        Form::template gather<Lanes>(m, rows[p]);
      }
#pragma GCC unroll 4
      for (int x = 0; x < Form::kResults; ++x) {
        Float m[Form::kProducts], results[Form::kResults];
#pragma GCC unroll 6
        for (int p = 0; p < Form::kProducts; ++p) {
          m[p] = rows[p][x];
        }
        Form::template gather<Lanes>(m, results);
#pragma GCC unroll 4
        for (int y = 0; y < Form::kResults; ++y) {
          store<Lanes>(results[y], sums + sums_of<group>(y * Form::kResults + x) + c);
        }
      }
    }
  }
}

// Computes and writes the results of a group of tiles for the channels of a block.
template <typename Products, typename Form>
MIRRORGAN_INLINE void write_tiles(
    const Arguments& a, Epilogue epilogue, int64_t first, int64_t count, int64_t block, bool one_half, float* sums) {
  using scalar_t = typename Products::scalar_t;
  constexpr int Lanes = Products::kLanes;
  constexpr int64_t kResults = Form::kResults;
  const Tiles tiles(a, kResults);
  const int64_t height = a.scale() * a.height, width = a.scale() * a.width;
  float bias[kColumns];
  read_bias(a, epilogue, block, bias);
  for (int64_t t = 0; t < count; ++t) {
    gather_tile<Lanes, Products::kGroup, Form>(sums + t * kHalf, one_half ? 1 : 2);
    const int64_t tile = first + t, row = tile / tiles.columns % tiles.rows * kResults;
    const int64_t column = tile % tiles.columns * kResults, sample = tile / tiles.columns / tiles.rows;
    for (int64_t result = 0; result < kResults * kResults; ++result) {
      const int64_t y = row + result / kResults, x = column + result % kResults;
      if (y >= height || x >= width) {
        continue;
      }
      const int64_t at = ((sample * height + y) * a.out_pitch + x) * a.out_channels;
      const float* values = sums + sums_of<Products::kGroup>(result) + t * kHalf;
      const int64_t channel = block * (epilogue == Epilogue::glu ? kHalf : kColumns);
      write_half<scalar_t, Lanes>(a, epilogue, values, bias, channel, at);
      if (epilogue != Epilogue::glu && !one_half) {
        write_half<scalar_t, Lanes>(a, epilogue, values + kSums, bias + kHalf, channel + kHalf, at);
      }
    }
  }
}

// Memory of a thread, for the spread inputs and for the weights of a block in float32.
struct Memory {
  void* spread;
  float* wide;
  int64_t product;  // elements from a product's matrix to the next
};

// Convolves the tiles [first, first + count) for the blocks [first_block, end_block) of columns.
template <typename Products, typename Form>
MIRRORGAN_INLINE void convolve_tiles(
    const Arguments& a,
    Epilogue epilogue,
    const Memory& memory,
    int64_t first,
    int64_t count,
    int64_t first_block,
    int64_t end_block) {
  using compute_t = typename Products::compute_t;
  constexpr int64_t kAll = Form::kProducts * Form::kProducts, kGroup = Products::kGroup, kGroupsPerBlock = kPixels / kGroup;
  alignas(64) float sums[(kAll + kGroupsPerBlock - 1) / kGroupsPerBlock * 2 * kSums];
  const Spread<compute_t> spread{static_cast<compute_t*>(memory.spread), a.steps * kDepth, memory.product};
  spread_tiles<Products::kLanes, Form, typename Products::scalar_t>(a, first, count, spread);
  const int64_t panel = a.steps * 2 * kTile;
  for (int64_t block = first_block; block < end_block; ++block) {
    const auto* weight = static_cast<const typename Products::scalar_t*>(a.weight) + block * panel;
    const compute_t* columns;
    int64_t distance;
    if constexpr (Products::kWidens) {
      for (int64_t product = 0; product < kAll; ++product) {
        Products::widen(weight + product * a.blocks * panel, memory.wide + product * panel, a.steps * 2);
      }
      columns = memory.wide;
      distance = panel;
    } else {
      columns = weight;
      distance = a.blocks * panel;
    }
    const bool one_half = epilogue != Epilogue::glu && a.out_channels - block * kColumns <= kHalf;
    for (int64_t t = 0; t < count; t += kGroup) {
      const int64_t tiles = count - t < kGroup ? count - t : kGroup;
      Products::multiply(spread, t, tiles, kAll, columns, distance, one_half, sums);
      write_tiles<Products, Form>(a, epilogue, first + t, tiles, block, one_half, sums);
    }
  }
}

struct Kernel {
  void (*convolve_tiles)(const Arguments&, Epilogue, const Memory&, int64_t, int64_t, int64_t, int64_t);
  int64_t element_bytes;  // size of an element of the spread inputs
  bool widens;
};

#define MIRRORGAN_KERNEL(name, target, ...)                                                                             \
  template <typename Form>                                                                                              \
  target void tiles_##name(const Arguments& a, Epilogue epilogue, const Memory& memory, int64_t first, int64_t count,   \
                           int64_t first_block, int64_t end_block) {                                                    \
    convolve_tiles<__VA_ARGS__, Form>(a, epilogue, memory, first, count, first_block, end_block);                       \
  }                                                                                                                     \
  template <typename Form>                                                                                              \
  constexpr Kernel name{tiles_##name<Form>, sizeof(__VA_ARGS__::compute_t), __VA_ARGS__::kWidens};

#define MIRRORGAN_FLOATS(name, scalar_t, lanes, rows, halves, target) \
  MIRRORGAN_KERNEL(name, target, InVectors<scalar_t, lanes, InFloats<scalar_t, lanes, rows, halves>>)

MIRRORGAN_FLOATS(float_baseline, float, 4, 2, 1, )
MIRRORGAN_FLOATS(bfloat16_baseline, bfloat16_bits, 4, 2, 1, )
#if defined(MIRRORGAN_X86)
MIRRORGAN_FLOATS(float_avx2, float, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_FLOATS(bfloat16_avx2, bfloat16_bits, 8, 4, 1, MIRRORGAN_TARGET_AVX2)
MIRRORGAN_FLOATS(float_avx512, float, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
MIRRORGAN_FLOATS(bfloat16_avx512, bfloat16_bits, 16, 8, 2, MIRRORGAN_TARGET_AVX512)
MIRRORGAN_KERNEL(pairs_avx512, MIRRORGAN_TARGET_AVX512, InVectors<bfloat16_bits, 16, InPairs>)
MIRRORGAN_KERNEL(matrix_tiles, MIRRORGAN_TARGET_AVX512, InMatrixTiles)
#endif

template <typename scalar_t, typename Form>
Kernel chosen_kernel() {
#if defined(MIRRORGAN_X86)
  if constexpr (std::is_same_v<scalar_t, float>) {
    return chosen_of(float_baseline<Form>, float_avx2<Form>, float_avx512<Form>);
  } else {
    switch (chosen_instruction_set()) {
      case InstructionSet::amx:
        return matrix_tiles<Form>;
      case InstructionSet::avx512_bf16:
        return pairs_avx512<Form>;
      default:
        return chosen_of(bfloat16_baseline<Form>, bfloat16_avx2<Form>, bfloat16_avx512<Form>);
    }
  }
#else
  if constexpr (std::is_same_v<scalar_t, float>) {
    return float_baseline<Form>;
  } else {
    return bfloat16_baseline<Form>;
  }
#endif
}

}  // namespace

template <typename scalar_t>
void convolve_winograd(const Arguments& a, Epilogue epilogue) {
  using Plain = std::conditional_t<std::is_same_v<scalar_t, float>, FourByFour, TwoByTwo>;
  const Kernel kernel = a.phases == 4 ? chosen_kernel<scalar_t, Upsampled>() : chosen_kernel<scalar_t, Plain>();
  const Tiles tiles(a, a.phases == 4 ? Upsampled::kResults : Plain::kResults);
  const int64_t threads = torch::stable::get_num_threads(), total = a.samples * tiles.rows * tiles.columns;
  const int64_t block_weights = a.products * a.steps * 2 * kTile;
  const bool many_weights = a.blocks * block_weights * kernel.element_bytes > kManyWeightsBytes;
  const int64_t tile_bytes = a.products * a.steps * kDepth * kernel.element_bytes;
  const int64_t groups_that_fit =
      std::max<int64_t>(1, (many_weights ? kLargeSpreadBytes : kSpreadBytes) / (tile_bytes * kPixels));
  const int64_t groups = divide_up(total, kPixels);
  int64_t tasks = divide_up(groups, groups_that_fit);
  if (tasks > 1 || !many_weights) {  // many weights are better divided among the threads than read by each of them
    tasks = std::min(groups, divide_up(tasks, threads) * threads);
  }
  const int64_t column_cuts = std::min(a.blocks, divide_up(threads, tasks));
  const int64_t blocks = divide_up(a.blocks, column_cuts);
  parallel_for(tasks * column_cuts, [&](int64_t begin, int64_t end) {
    static thread_local Workspace<float> spread, wide;
    const int64_t product = divide_up(groups, tasks) * kPixels * a.steps * kDepth + kPadding;
    const Memory memory{spread.at_least(divide_up(a.products * product * kernel.element_bytes, sizeof(float))),
                        kernel.widens ? wide.at_least(block_weights) : nullptr, product};
    for (int64_t index = begin; index < end; ++index) {
      const int64_t task = index / column_cuts, first_block = index % column_cuts * blocks;
      const int64_t first = groups * task / tasks * kPixels, next = groups * (task + 1) / tasks * kPixels;
      kernel.convolve_tiles(a, epilogue, memory, first, std::min(next, total) - first, first_block,
                            std::min(a.blocks, first_block + blocks));
    }
  });
}

template void convolve_winograd<float>(const Arguments&, Epilogue);
template void convolve_winograd<bfloat16_bits>(const Arguments&, Epilogue);

}  // namespace mirrorgan::convolution
