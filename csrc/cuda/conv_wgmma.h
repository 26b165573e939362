// conv_glu and conv_add of 64 channels on Hopper, by the products of warpgroups. What is computed is said in
// mirrorgan_fast/ops/, and the layout of the weights, in rows, in mirrorgan_fast/ops/packing.py.
//
// A block stays, with all weights in shared memory, and has one tile of 8 x 8 pixels after the other. A tile and its
// border of one pixel are read once, for all taps: its channels lie in eights, (channels / 8, pixels, 8), without a
// swizzle, so that the 64 pixels of any tap are a matrix that begins at another pixel. A product is of 64 pixels and 64
// columns.
//
// One group of four warps reads, tiles ahead; the two others have every second tile each, and one multiplies while the
// other writes.

#pragma once

#include "lockstep.h"

namespace mirrorgan::cuda::conv_wgmma {

constexpr int kWarpsOfGroup = 4;
constexpr int kGroups = 3;
constexpr int kWarps = kGroups * kWarpsOfGroup;
constexpr int kThreads = kWarps * kLanesOfWarp;
constexpr int kThreadsOfGroup = kWarpsOfGroup * kLanesOfWarp;

constexpr int kChannels = 64;
constexpr int kEights = kChannels / 8;
constexpr int kSide = 8;
constexpr int kBordered = kSide + 2;
constexpr int kPixels = kBordered * kBordered;
// Odd, so that the eights of one pixel, which eight lanes write at once, lie in different banks.
constexpr int kPlane = kPixels + 1;
constexpr int kStages = 6;

enum Form { kGlu, kGluUp, kAdd };

// How a form is made of products.
template <int kForm>
struct Plan {
  static constexpr bool kGated = kForm != kAdd;
  static constexpr int kParts = kForm == kGlu ? 2 : kForm == kGluUp ? 4 : 1;  // halves of the columns, or phases
  static constexpr int kBlocks = kForm == kGlu ? 18 : kForm == kGluUp ? 16 : 9;  // of weights, (channels, 64 columns)
  static constexpr int kColumns = kForm == kGlu ? 128 : 64;
  static constexpr int kOutChannels = kForm == kGluUp ? 32 : 64;
  static constexpr int kScale = kForm == kGluUp ? 2 : 1;
  static constexpr int kChannelsOfPart = kGated ? 32 : 64;

  // The block that a part multiplies with the pixel `down` and `right` of the one up and left; -1: none.
  MIRRORGAN_DEVICE static constexpr int block_of(int part, int down, int right) {
    if (kForm == kGlu) {
      return (down * 3 + right) * 2 + part;
    }
    if (kForm == kAdd) {
      return down * 3 + right;
    }
    const int tap_down = down - part / 2, tap_right = right - part % 2;
    const bool has = tap_down >= 0 && tap_down < 2 && tap_right >= 0 && tap_right < 2;
    return has ? part * 4 + tap_down * 2 + tap_right : -1;
  }

  MIRRORGAN_DEVICE static constexpr int first_tap(int part) { return kForm == kGluUp ? part / 2 * 3 + part % 2 : 0; }

  // Where a column of a block is among those of a product: so that of a pixel each lane has sixteen columns that are, or
  // give, eights of neighbouring channels.
  MIRRORGAN_DEVICE static int place_of(int column) {
    const int lane = kGated ? column / 16 : column % 32 / 8;
    const int own = kGated ? column % 16 : column / 32 * 8 + column % 8;
    return own / 2 * 8 + lane * 2 + own % 2;
  }
};

struct Arguments {
  const uint16_t* x;         // (samples, height, width, 64)
  const uint16_t* weight;    // (phases, taps, 64, columns); with a GLU each value before its gate
  const float* bias;         // (columns), all values before all gates
  const uint16_t* residual;  // as out, or null
  uint16_t* out;             // (samples, scale height, scale width, channels)
  int64_t tiles;
  int height;
  int width;
};

template <typename Machine, int kForm>
struct Shared {
  Eight weight[Plan<kForm>::kBlocks][kEights][kColumnsOfGroup];
  Eight map[kStages][kEights][kPlane];
  float bias[Plan<kForm>::kColumns];
  typename Machine::Barrier full[kStages];   // a tile is there
  typename Machine::Barrier empty[kStages];  // it was multiplied
  typename Machine::Barrier turn[2];         // a group may multiply
};

// Along a map's height or width.
MIRRORGAN_BOTH int tiles_along(int size) { return (size + kSide - 1) / kSide; }

template <typename Machine, int kForm>
struct Block {
  using P = Plan<kForm>;
  // Of a group: lanes of warps, of each part.
  using Sums = typename Machine::template Warps<typename Machine::template Lanes<GroupD>>[P::kParts];

  const Arguments& a;
  Shared<Machine, kForm>& shared;

  // By one thread, before all others begin.
  MIRRORGAN_DEVICE void prepare() {
    for (int stage = 0; stage < kStages; ++stage) {
      Machine::prepare(shared.full[stage], kWarpsOfGroup);
      Machine::prepare(shared.empty[stage], kWarpsOfGroup);
    }
    Machine::prepare(shared.turn[0], kWarpsOfGroup);
    Machine::prepare(shared.turn[1], kWarpsOfGroup);
  }

  // The group that reads: tiles from `first` on, as far apart as there are blocks.
  MIRRORGAN_DEVICE void read(int64_t first, int64_t blocks) {
    int stage = 0, round = 0, before = -1;
    for (int64_t tile = first; tile < a.tiles; tile += blocks) {
      Machine::await(shared.empty[stage], round - 1);
      Machine::group([&](int warp) { read_map(warp, tile, stage); });
      Machine::commit_copies();
      if (before >= 0) {
        Machine::template await_copies<1>();
        Machine::arrive(shared.full[before]);
      }
      before = stage;
      if (++stage == kStages) {
        stage = 0;
        ++round;
      }
    }
    if (before >= 0) {
      Machine::template await_copies<0>();
      Machine::arrive(shared.full[before]);
    }
  }

  // The others, 0 and 1.
  MIRRORGAN_DEVICE void multiply(int group, int64_t first, int64_t blocks) {
    int stage = group, round = 0, turn = 0;
    for (int64_t tile = first + group * blocks; tile < a.tiles; tile += 2 * blocks) {
      Sums sums;
      Machine::await(shared.turn[group], group == 0 ? turn - 1 : turn);
      Machine::await(shared.full[stage], round);
      Machine::begin_products();
      multiply_tile(sums, stage);
      Machine::commit_products();
      Machine::arrive(shared.turn[1 - group]);
      Machine::await_products(sums);
      Machine::arrive(shared.empty[stage]);
      Machine::group([&](int warp) { write(warp, tile, sums); });
      ++turn;
      stage += 2;
      if (stage >= kStages) {
        stage -= kStages;
        ++round;
      }
    }
  }

  // All weights and the bias; every warp of the block has its share.
  MIRRORGAN_DEVICE void read_weight(int warp) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      const int thread = warp * kLanesOfWarp + lane;
      // a square of eight channels and eight columns at a time
      for (int i = thread; i < P::kBlocks * kEights * kColumnsOfGroup / 8; i += kThreads) {
        const int columns = i % (kColumnsOfGroup / 8) * 8, eight = i / (kColumnsOfGroup / 8) % kEights;
        const int block = i / (kColumnsOfGroup / 8) / kEights;
        constexpr int kBlocksOfTap = P::kColumns / kColumnsOfGroup;
        const int row = block / kBlocksOfTap * kChannels + eight * 8;
        const uint16_t* from = a.weight + row * P::kColumns + block % kBlocksOfTap * kColumnsOfGroup + columns;
        Eight rows[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          rows[k] = *reinterpret_cast<const Eight*>(from + k * P::kColumns);
        }
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          Eight column;
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            column.values[k] = rows[k].values[n];
          }
          shared.weight[block][eight][P::place_of(columns + n)] = column;
        }
      }
      for (int i = thread; i < P::kColumns; i += kThreads) {
        shared.bias[i] = a.bias[i];
      }
    }
  }

 private:
  static constexpr uint32_t kBytes = sizeof(Eight);
  static_assert(kStages % 2 == 0);  // so that a group keeps to its stages

  struct Place {
    int64_t sample;
    int top;
    int left;

    MIRRORGAN_DEVICE Place(const Arguments& a, int64_t tile) {
      const int across = tiles_along(a.width), of_sample = tiles_along(a.height) * across;
      sample = tile / of_sample;
      const int of_map = static_cast<int>(tile % of_sample);
      top = of_map / across * kSide;
      left = of_map % across * kSide;
    }
  };

  // Begins to copy a warp's share of a tile and its border; zero outside the map.
  MIRRORGAN_DEVICE void read_map(int warp, int64_t tile, int stage) {
    const Place place(a, tile);
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = warp * kLanesOfWarp + lane; i < kPixels * kEights; i += kThreadsOfGroup) {
        const int pixel = i / kEights, eight = i % kEights;
        const int y = place.top + pixel / kBordered - 1, x = place.left + pixel % kBordered - 1;
        const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
        const int64_t at = inside ? (place.sample * a.height + y) * a.width + x : 0;
        Machine::copy(shared.map[stage][eight] + pixel, a.x + at * kChannels + eight * 8, inside);
      }
    }
  }

  // Begins the products of a group's tile and all weights.
  MIRRORGAN_DEVICE void multiply_tile(Sums& sums, int stage) {
    constexpr int kStepsOfTap = kChannels / kDepthOfGroup;
    const auto map = Machine::address(shared.map[stage]), weight = Machine::address(shared.weight);
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
      for (int step = 0; step < kStepsOfTap; ++step) {
        const int eight = step * kDepthOfGroup / 8, pixel = tap / 3 * kBordered + tap % 3;
        const typename Machine::Matrix of_map{map + (eight * kPlane + pixel) * kBytes, kPlane * kBytes, kBordered * kBytes};
#pragma unroll
        for (int part = 0; part < P::kParts; ++part) {
          const int block = P::block_of(part, tap / 3, tap % 3);
          if (block >= 0) {
            const auto begin = weight + (block * kEights + eight) * kColumnsOfGroup * kBytes;
            const typename Machine::Matrix of_weight{begin, kColumnsOfGroup * kBytes, 8 * kBytes};
            Machine::multiply_group(sums[part], of_map, of_weight, step > 0 || tap != P::first_tap(part));
          }
        }
      }
    }
  }

  // What a group's warp has of a tile's results: gated, or with the residual added.
  MIRRORGAN_DEVICE void write(int warp, int64_t tile, Sums& sums) {
    const Place place(a, tile);
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
#pragma unroll
      for (int part = 0; part < P::kParts; ++part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int y = place.top + warp * 2 + half, x = place.left + lane / 4;
          if (y >= a.height || x >= a.width) {
            continue;
          }
          const int phase = kForm == kGluUp ? part : 0;
          const int64_t row = (place.sample * a.height + y) * P::kScale + phase / 2;
          const int64_t pixel = (row * a.width + x) * P::kScale + phase % 2;
          const int first = (kForm == kGlu ? part * P::kChannelsOfPart : 0) + lane % 4 * 8;
          const GroupD& own = sums[part][warp][lane];
#pragma unroll
          for (int eight = 0; eight < P::kChannelsOfPart / 32; ++eight) {
            const int channel = first + eight * 32;
            write_channels(own, half, eight, channel, pixel * P::kOutChannels + channel);
          }
        }
      }
    }
  }

  // Eight channels of one pixel.
  MIRRORGAN_DEVICE void write_channels(const GroupD& own, int half, int eight, int channel, int64_t at) {
    Eight out, residual{};
    if (!P::kGated && a.residual != nullptr) {
      residual = *reinterpret_cast<const Eight*>(a.residual + at);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (P::kGated) {
        const float* both = own.values + i * 4 + half * 2;
        const float value = both[0] + shared.bias[channel + i];
        const float gate = both[1] + shared.bias[P::kOutChannels + channel + i];
        out.values[i] = as_bfloat16(value * sigmoid<Machine>(gate));
      } else {
        const float value = own.values[(eight * 4 + i / 2) * 4 + half * 2 + i % 2];
        out.values[i] = as_bfloat16(value + shared.bias[channel + i] + as_float(residual.values[i]));
      }
    }
    *reinterpret_cast<Eight*>(a.out + at) = out;
  }
};

}  // namespace mirrorgan::cuda::conv_wgmma
