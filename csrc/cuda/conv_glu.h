// conv_glu on tensor cores: what a block of threads does. The op is defined in mirrorgan_fast/ops/conv_glu.py, and the
// layout of the weights, in rows, in mirrorgan_fast/ops/packing.py.
//
// A block computes 8 x 16 pixels of one map and 64 columns, alternately values and gates. It reads its part of the map,
// with a border of one pixel, into shared memory, 64 channels at a time. All taps and all phases read it from there.
// While one tap is multiplied, the weights of the next tap are loaded. A warp has a row of 16 pixels. A lane has both a
// value and its gate.

#pragma once

#include "lockstep.h"

namespace mirrorgan::cuda::conv_glu {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanesOfWarp;
constexpr int kRows = kWarps;
constexpr int kPixels = 16;
constexpr int kColumns = 64;
constexpr int kDepth = 64;
constexpr int kTileWidth = kPixels + 2;
constexpr int kTileHeight = kRows + 2;
// Rows in shared memory are padded, so that the lanes of a warp read from different banks.
constexpr int kPixelStride = kDepth + 8;
constexpr int kWeightStride = kColumns + 8;
constexpr int kOutStride = kColumns / 2 + 8;

struct Arguments {
  const uint16_t* x;       // (samples, height, width, channels)
  const uint16_t* weight;  // (phases, taps, channels, columns), each value followed by its gate
  const float* bias;       // (columns), all values before all gates
  uint16_t* out;           // (samples, scale height, scale width, columns / 2); scale is 2 with four phases, otherwise 1
  int height;
  int width;
  int channels;
  int columns;
  bool aligned;  // whether Eights can be used: channels and columns are multiples of 8, and all addresses are aligned
};

struct Shared {
  alignas(16) uint16_t map[kTileHeight * kTileWidth * kPixelStride];
  alignas(16) uint32_t weight[2][kDepth / 2 * kWeightStride];  // pairs of neighboring channels
};

struct Sums {
  TileD tiles[kColumns / 8];
};

// The number of blocks along a map's height and width.
MIRRORGAN_DEVICE int blocks_down(const Arguments& a) { return (a.height + kRows - 1) / kRows; }
MIRRORGAN_DEVICE int blocks_across(const Arguments& a) { return (a.width + kPixels - 1) / kPixels; }

template <typename Machine, int kPhases>
struct Block {
  static constexpr int kSide = kPhases == 4 ? 2 : 3;
  static constexpr int kTaps = kSide * kSide;

  const Arguments& a;
  Shared& shared;
  int64_t sample;
  int top;     // first row of the map
  int left;    // first pixel of a row
  int column;  // first column

  MIRRORGAN_DEVICE Block(const Arguments& arguments, Shared& memory, int64_t tile, int column_block)
      : a(arguments), shared(memory), column(column_block * kColumns) {
    const int across = blocks_across(a), tiles_per_sample = blocks_down(a) * across;
    sample = tile / tiles_per_sample;
    const int place = static_cast<int>(tile % tiles_per_sample);
    top = place / across * kRows;
    left = place % across * kPixels;
  }

  MIRRORGAN_DEVICE void run() {
    const int chunks = (a.channels + kDepth - 1) / kDepth;
    for (int phase = 0; phase < kPhases; ++phase) {
      typename Machine::template Warps<typename Machine::template Lanes<Sums>> sums{};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        Machine::template step<kWarps>([&](int warp) {
          if (phase == 0 || chunks > 1) {
            read_map(warp, chunk * kDepth);
          }
          typename Machine::template Lanes<Eight> rows[2];
          fetch_weight(warp, rows, phase, 0, chunk * kDepth);
          keep_weight(warp, rows, 0);
        });
        for (int tap = 0; tap < kTaps; ++tap) {
          Machine::template step<kWarps>([&](int warp) {
            typename Machine::template Lanes<Eight> rows[2];
            if (tap + 1 < kTaps) {
              fetch_weight(warp, rows, phase, tap + 1, chunk * kDepth);
            }
            multiply(warp, sums[warp], phase, tap);
            if (tap + 1 < kTaps) {
              keep_weight(warp, rows, tap + 1);
            }
          });
        }
      }
      Machine::template step<kWarps>([&](int warp) { gate(warp, sums[warp]); });
      Machine::template step<kWarps>([&](int warp) { write(warp, phase); });
    }
  }

 private:
  // Reads the block's part of the map and its border, from channel `first` on; zero outside the map.
  MIRRORGAN_DEVICE void read_map(int warp, int first) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = warp * kLanesOfWarp + lane; i < kTileHeight * kTileWidth * kDepth / 8; i += kThreads) {
        const int place = i / (kDepth / 8), channel = i % (kDepth / 8) * 8;
        const int y = top + place / kTileWidth - 1, x = left + place % kTileWidth - 1;
        const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
        const int valid = inside ? a.channels - first - channel : 0;
        const int64_t pixel = inside ? (sample * a.height + y) * a.width + x : 0;
        const int64_t at = valid > 0 ? pixel * a.channels + first + channel : 0;
        *reinterpret_cast<Eight*>(shared.map + place * kPixelStride + channel) = read_eight(a.x + at, valid, a.aligned);
      }
    }
  }

  // Loads each lane's share of a tap's weights: eight columns of two channels.
  MIRRORGAN_DEVICE void fetch_weight(
      int warp, typename Machine::template Lanes<Eight> (&rows)[2], int phase, int tap, int first) {
    static_assert(kDepth / 2 * kColumns / 8 == kThreads);
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      const int share = warp * kLanesOfWarp + lane;
      const int columns = column + share % (kColumns / 8) * 8;
      for (int i = 0; i < 2; ++i) {
        const int channel = first + share / (kColumns / 8) * 2 + i;
        const int valid = channel < a.channels ? a.columns - columns : 0;
        const int64_t row = static_cast<int64_t>(phase * kTaps + tap) * a.channels + channel;
        rows[i][lane] = read_eight(a.weight + (valid > 0 ? row * a.columns + columns : 0), valid, a.aligned);
      }
    }
  }

  MIRRORGAN_DEVICE void keep_weight(int warp, typename Machine::template Lanes<Eight> (&rows)[2], int tap) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      const int share = warp * kLanesOfWarp + lane;
      uint32_t* pairs = shared.weight[tap % 2] + share / (kColumns / 8) * kWeightStride + share % (kColumns / 8) * 8;
      for (int i = 0; i < 8; ++i) {
        pairs[i] = pair_of(rows[0][lane].values[i], rows[1][lane].values[i]);
      }
    }
  }

  MIRRORGAN_DEVICE void multiply(int warp, typename Machine::template Lanes<Sums>& sums, int phase, int tap) {
    // In shared memory, where the first pixel is one up and one left of the block's first pixel.
    const int down = tap / kSide + (kPhases == 4 ? phase / 2 : 0);
    const int right = tap % kSide + (kPhases == 4 ? phase % 2 : 0);
    const uint16_t* row = shared.map + ((warp + down) * kTileWidth + right) * kPixelStride;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      typename Machine::template Lanes<TileA> of_map;
      for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
        for (int i = 0; i < 4; ++i) {
          const int pixel = lane / 4 + i % 2 * 8, channel = k + lane % 4 * 2 + i / 2 * 8;
          of_map[lane].pairs[i] = *reinterpret_cast<const uint32_t*>(row + pixel * kPixelStride + channel);
        }
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        typename Machine::template Lanes<TileB> of_weight;
        typename Machine::template Lanes<TileD> tile;
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          const uint32_t* pairs = shared.weight[tap % 2] + (k / 2 + lane % 4) * kWeightStride + n * 8 + lane / 4;
          of_weight[lane].pairs[0] = pairs[0];
          of_weight[lane].pairs[1] = pairs[4 * kWeightStride];
          tile[lane] = sums[lane].tiles[n];
        }
        Machine::multiply(tile, of_map, of_weight);
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          sums[lane].tiles[n] = tile[lane];
        }
      }
    }
  }

  // Writes the values times the sigmoids of their gates into the memory of the weights.
  MIRRORGAN_DEVICE void gate(int warp, typename Machine::template Lanes<Sums>& sums) {
    uint16_t* out = reinterpret_cast<uint16_t*>(shared.weight);
    static_assert(kRows * kPixels * kOutStride * sizeof(uint16_t) <= sizeof(Shared::weight));
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const int channel = n * 4 + lane % 4, channel_of_map = column / 2 + channel;
        const bool exists = channel_of_map < a.columns / 2;
        const float value_bias = exists ? a.bias[channel_of_map] : 0.0f;
        const float gate_bias = exists ? a.bias[a.columns / 2 + channel_of_map] : 0.0f;
        for (int i = 0; i < 2; ++i) {
          const float* both = sums[lane].tiles[n].values + 2 * i;
          const int pixel = warp * kPixels + lane / 4 + 8 * i;
          out[pixel * kOutStride + channel] =
              as_bfloat16((both[0] + value_bias) * sigmoid<Machine>(both[1] + gate_bias));
        }
      }
    }
  }

  MIRRORGAN_DEVICE void write(int warp, int phase) {
    constexpr int kScale = kPhases == 4 ? 2 : 1;
    const uint16_t* out = reinterpret_cast<const uint16_t*>(shared.weight);
    const int channels = a.columns / 2;
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = warp * kLanesOfWarp + lane; i < kRows * kPixels * kColumns / 16; i += kThreads) {
        const int pixel = i / (kColumns / 16), channel = i % (kColumns / 16) * 8, channel_of_map = column / 2 + channel;
        const int y = top + pixel / kPixels, x = left + pixel % kPixels;
        if (y < a.height && x < a.width && channel_of_map < channels) {
          const int64_t row = sample * a.height * kScale + y * kScale + (kPhases == 4 ? phase / 2 : 0);
          const int64_t at = row * a.width * kScale + x * kScale + (kPhases == 4 ? phase % 2 : 0);
          write_eight(a.out + at * channels + channel_of_map,
                      *reinterpret_cast<const Eight*>(out + pixel * kOutStride + channel), channels - channel_of_map,
                      a.aligned);
        }
      }
    }
  }
};

}  // namespace mirrorgan::cuda::conv_glu
