// conv_glu and conv_add for 64 channels on Hopper, with wgmma: what a block of threads does. The ops are defined in
// mirrorgan_fast/ops/, and the layout of the weights, in rows, in mirrorgan_fast/ops/packing.py.
//
// A block is persistent: it keeps all weights in shared memory and computes one tile of 8 x 8 pixels after the other. A
// tile and its border of one pixel are read once for all taps. In shared memory they are (channels / 8, pixels, 8),
// without a swizzle, so that the 64 pixels of any tap are a matrix that starts at another pixel. A product has 64
// pixels and 64 or 128 columns.
//
// One group of four warps reads tiles in advance. The two other groups compute every second tile each: while one
// multiplies, the other writes.

#pragma once

#include "lockstep.h"

namespace mirrorgan::cuda::conv_wgmma {

constexpr int kWarpsOfGroup = 4;
constexpr int kThreadsOfGroup = kWarpsOfGroup * kLanesOfWarp;
constexpr int kMultiplying = 2;  // groups that multiply
constexpr int kThreads = (1 + kMultiplying) * kThreadsOfGroup;

constexpr int kChannels = 64;
constexpr int kEights = kChannels / 8;
constexpr int kSide = 8;
constexpr int kBordered = kSide + 2;
constexpr int kPixels = kBordered * kBordered;
// Odd, so that the Eights of one pixel, which eight lanes write together, are in different banks.
constexpr int kPlane = kPixels + 1;
constexpr int kStages = 6;

enum Form { kGlu, kGluUp, kAdd };

// How a form uses products.
template <int kForm>
struct Plan {
  static constexpr bool kGated = kForm != kAdd;
  static constexpr int kHalves = kForm == kGlu ? 2 : 1;  // parts with different channels; those of kGluUp are other pixels
  static constexpr int kParts = kForm == kGlu ? 2 : kForm == kGluUp ? 4 : 1;  // halves of the columns, or phases
  static constexpr int kColumns = kForm == kGlu ? 128 : 64;  // columns of the weights, and of a product
  static constexpr int kBlocks = kForm == kGluUp ? 16 : 9;   // blocks of weights (channels, columns): the taps of all phases
  static constexpr int kScale = kForm == kGluUp ? 2 : 1;
  static constexpr int kOutChannels = kForm == kGluUp ? 32 : 64;
  static constexpr int kChannelsOfPart = kGated ? 32 : 64;
  static constexpr int kEightsOfLane = kChannelsOfPart / 32;  // Eights of a lane, for each pixel and part

  // The block of weights that a part multiplies with the pixel at (down, right), counted from the pixel up and left of the
  // result's pixel; -1 if there is none.
  MIRRORGAN_DEVICE static constexpr int block_of(int part, int down, int right) {
    if (kForm != kGluUp) {
      return down * 3 + right;
    }
    const int tap_down = down - part / 2, tap_right = right - part % 2;
    const bool has = tap_down >= 0 && tap_down < 2 && tap_right >= 0 && tap_right < 2;
    return has ? part * 4 + tap_down * 2 + tap_right : -1;
  }

  MIRRORGAN_DEVICE static constexpr int first_tap(int part) { return kForm == kGluUp ? part / 2 * 3 + part % 2 : 0; }

  // The place of a column of a block in a product. It is chosen so that each lane has sixteen columns of a pixel that
  // become Eights of neighboring channels.
  MIRRORGAN_DEVICE static int place_of(int column) {
    const int of_part = column % kColumnsOfGroup;
    const int lane = kGated ? of_part / 16 : of_part % 32 / 8;
    const int own = kGated ? of_part % 16 : of_part / 32 * 8 + of_part % 8;
    return column - of_part + own / 2 * 8 + lane * 2 + own % 2;
  }
};

struct Arguments {
  const uint16_t* x;         // (samples, height, width, 64)
  const uint16_t* weight;    // (phases, taps, 64, columns); with a GLU each value is followed by its gate
  const float* bias;         // (columns), all values before all gates
  const uint16_t* residual;  // like out, or null
  uint16_t* out;             // (samples, scale height, scale width, channels)
  int tiles;
  int height;
  int width;
};

template <typename Machine, int kForm>
struct Shared {
  Eight weight[Plan<kForm>::kBlocks][kEights][Plan<kForm>::kColumns];
  Eight map[kStages][kEights][kPlane];
  typename Machine::Barrier full[kStages];       // a tile has been read
  typename Machine::Barrier empty[kStages];      // a tile has been multiplied
  typename Machine::Barrier turn[kMultiplying];  // a group may multiply
};

// The number of tiles along a map's height or width.
MIRRORGAN_BOTH int tiles_along(int size) { return (size + kSide - 1) / kSide; }

template <typename Machine, int kForm>
struct Block {
  using P = Plan<kForm>;

  const Arguments& a;
  Shared<Machine, kForm>& shared;

  // Called by one thread, before all others start.
  MIRRORGAN_DEVICE void prepare() {
    for (int stage = 0; stage < kStages; ++stage) {
      Machine::prepare(shared.full[stage], kThreadsOfGroup);
      Machine::prepare(shared.empty[stage], kWarpsOfGroup);
    }
    for (int group = 0; group < kMultiplying; ++group) {
      Machine::prepare(shared.turn[group], kWarpsOfGroup);
    }
  }

  // The group that reads. It reads the tiles first, first + blocks, first + 2 * blocks and so on.
  MIRRORGAN_DEVICE void read(int first, int blocks) {
    int stage = 0, round = 0;
    for (int tile = first; tile < a.tiles; tile += blocks) {
      Machine::await(shared.empty[stage], round - 1);
      Machine::group([&](int warp) { read_map(warp, tile, stage); });
      Machine::arrive_with_copies(shared.full[stage]);
      if (++stage == kStages) {
        stage = 0;
        ++round;
      }
    }
  }

  // Reads all weights. Called by every warp of the groups that multiply, before they start.
  MIRRORGAN_DEVICE void read_weight(int warp) {
    Machine::lanes([&](int lane) {
      // A square of eight channels and eight columns at a time.
      constexpr int kSquares = P::kBlocks * kEights * P::kColumns / 8;
      for (int i = warp * kLanesOfWarp + lane; i < kSquares; i += kMultiplying * kThreadsOfGroup) {
        const int columns = i % (P::kColumns / 8) * 8, eight = i / (P::kColumns / 8) % kEights;
        const int block = i / (P::kColumns / 8) / kEights;
        const uint16_t* from = a.weight + (block * kChannels + eight * 8) * P::kColumns + columns;
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
    });
  }

  // A group that multiplies, 0 or 1.
  MIRRORGAN_DEVICE void multiply(int group, int first, int blocks) {
    typename Machine::template Lanes<Bias> bias;
    read_bias(bias);
    int stage = group, round = 0, turn = 0;
    for (int tile = first + group * blocks; tile < a.tiles; tile += kMultiplying * blocks) {
      Sums sums;
      Residuals residuals;
      Machine::await(shared.full[stage], round);
      Machine::show_to_products();
      Machine::await(shared.turn[group], group == 0 ? turn - 1 : turn);
      Machine::begin_products();
      multiply_taps<0, 8>(sums, stage);
      Machine::arrive(shared.turn[1 - group]);  // the other group's products queue after the last of these
      multiply_taps<8, 9>(sums, stage);
      Machine::commit_products();
      Machine::group([&](int warp) { read_residual(warp, tile, residuals); });
      Machine::await_products(sums);
      Machine::arrive(shared.empty[stage]);
      Machine::group([&](int warp) { write(warp, tile, bias, residuals, sums); });
      ++turn;
      stage += kMultiplying;
      if (stage >= kStages) {
        stage -= kStages;
        ++round;
      }
    }
  }

 private:
  static constexpr uint32_t kBytes = sizeof(Eight);
  static_assert(kStages % kMultiplying == 0);  // so that each group always has the same stages

  // The sums of a group, for each part.
  using Sums = typename Machine::template Warps<typename Machine::template Lanes<GroupD>>[P::kParts];

  // The biases of a lane, for each part with different channels: of values and gates, or of plain channels.
  struct Bias {
    float values[P::kHalves][16];
  };
  // The residual of a lane, for two pixels.
  struct Residual {
    Eight values[2][P::kEightsOfLane];
  };
  using Residuals = typename Machine::template Warps<typename Machine::template Lanes<Residual>>;

  struct Place {
    int64_t sample;
    int top;
    int left;

    MIRRORGAN_DEVICE Place(const Arguments& a, int tile) {
      const int across = tiles_along(a.width), tiles_per_sample = tiles_along(a.height) * across;
      sample = tile / tiles_per_sample;
      const int index = tile % tiles_per_sample;
      top = index / across * kSide;
      left = index % across * kSide;
    }
  };

  // The first channel of a lane's Eight in a part.
  MIRRORGAN_DEVICE static int channel_of(int lane, int part, int eight) {
    return part % P::kHalves * P::kChannelsOfPart + eight * 32 + lane % 4 * 8;
  }

  MIRRORGAN_DEVICE void read_bias(typename Machine::template Lanes<Bias>& bias) {
    Machine::lanes([&](int lane) {
#pragma unroll
      for (int part = 0; part < P::kHalves; ++part) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          const int channel = P::kGated ? channel_of(lane, part, 0) + i / 8 * P::kOutChannels : channel_of(lane, part, i / 8);
          bias[lane].values[part][i] = a.bias[channel + i % 8];
        }
      }
    });
  }

  // Starts to copy a warp's share of a tile and its border; zero outside the map.
  MIRRORGAN_DEVICE void read_map(int warp, int tile, int stage) {
    const Place place(a, tile);
    Machine::lanes([&](int lane) {
      for (int i = warp * kLanesOfWarp + lane; i < kPixels * kEights; i += kThreadsOfGroup) {
        const int pixel = i / kEights, eight = i % kEights;
        const int y = place.top + pixel / kBordered - 1, x = place.left + pixel % kBordered - 1;
        const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
        const int64_t at = inside ? (place.sample * a.height + y) * a.width + x : 0;
        Machine::copy(shared.map[stage][eight] + pixel, a.x + at * kChannels + eight * 8, inside);
      }
    });
  }

  // Starts the products of a group's tile with the weights of some taps.
  template <int kFirst, int kEnd>
  MIRRORGAN_DEVICE void multiply_taps(Sums& sums, int stage) {
    const auto map = Machine::address(shared.map[stage]), weight = Machine::address(shared.weight);
#pragma unroll
    for (int tap = kFirst; tap < kEnd; ++tap) {
#pragma unroll
      for (int step = 0; step < kChannels / kDepthOfGroup; ++step) {
        const int eight = step * kDepthOfGroup / 8, pixel = tap / 3 * kBordered + tap % 3;
        const typename Machine::Matrix map_matrix{
            map + (eight * kPlane + pixel) * kBytes, kPlane * kBytes, kBordered * kBytes};
        const auto of_block = [&](int block) -> typename Machine::Matrix {
          return {weight + (block * kEights + eight) * P::kColumns * kBytes, P::kColumns * kBytes, 8 * kBytes};
        };
        if constexpr (kForm == kGlu) {
          Machine::multiply_group(sums[0], sums[1], map_matrix, of_block(tap), step > 0 || tap > 0);
        } else {
#pragma unroll
          for (int part = 0; part < P::kParts; ++part) {
            const int block = P::block_of(part, tap / 3, tap % 3);
            if (block >= 0) {
              Machine::multiply_group(sums[part], map_matrix, of_block(block), step > 0 || tap != P::first_tap(part));
            }
          }
        }
      }
    }
  }

  // Calls work(row, column, half) for those of a lane's two pixels that are in the map. Rows count over all samples.
  template <typename Work>
  MIRRORGAN_DEVICE void for_pixels(int warp, int lane, const Place& place, const Work& work) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = place.top + warp * 2 + half, x = place.left + lane / 4;
      if (y < a.height && x < a.width) {
        work(place.sample * a.height + y, x, half);
      }
    }
  }

  // Reads the residual of a warp's results, while they are being multiplied.
  MIRRORGAN_DEVICE void read_residual(int warp, int tile, Residuals& residuals) {
    if constexpr (!P::kGated) {
      const Place place(a, tile);
      Machine::lanes([&](int lane) {
        residuals[warp][lane] = {};
        if (a.residual == nullptr) {
          return;
        }
        for_pixels(warp, lane, place, [&](int64_t row, int x, int half) {
#pragma unroll
          for (int eight = 0; eight < P::kEightsOfLane; ++eight) {
            const int64_t at = (row * a.width + x) * P::kOutChannels + channel_of(lane, 0, eight);
            residuals[warp][lane].values[half][eight] = *reinterpret_cast<const Eight*>(a.residual + at);
          }
        });
      });
    }
  }

  // Writes a warp's results of a tile: gated, or with the residual added.
  MIRRORGAN_DEVICE void write(
      int warp, int tile, typename Machine::template Lanes<Bias>& bias, Residuals& residuals, Sums& sums) {
    const Place place(a, tile);
    Machine::lanes([&](int lane) {
      for_pixels(warp, lane, place, [&](int64_t row, int x, int half) {
#pragma unroll
        for (int part = 0; part < P::kParts; ++part) {
          const int phase = kForm == kGluUp ? part : 0;
          const int64_t pixel = ((row * P::kScale + phase / 2) * a.width + x) * P::kScale + phase % 2;
          const float* own = sums[part][warp][lane].values + half * 2;
          const float* own_bias = bias[lane].values[part % P::kHalves];
#pragma unroll
          for (int eight = 0; eight < P::kEightsOfLane; ++eight) {
            Pairs out;
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
              float two[2];
#pragma unroll
              for (int j = i; j < i + 2; ++j) {
                if constexpr (P::kGated) {
                  two[j - i] = (own[j * 4] + own_bias[j]) * sigmoid<Machine>(own[j * 4 + 1] + own_bias[8 + j]);
                } else {
                  const float value = own[(eight * 4 + j / 2) * 4 + j % 2] + own_bias[eight * 8 + j];
                  two[j - i] = value + as_float(residuals[warp][lane].values[half][eight].values[j]);
                }
              }
              out.values[i / 2] = pair_of(as_bfloat16(two[0]), as_bfloat16(two[1]));
            }
            const int channel = channel_of(lane, part, eight);
            *reinterpret_cast<Pairs*>(a.out + pixel * P::kOutChannels + channel) = out;
          }
        }
      });
    });
  }
};

}  // namespace mirrorgan::cuda::conv_wgmma
