// glam_attention_mix on tensor cores: what a block of threads does. The op is defined in
// mirrorgan_fast/ops/glam_attention_mix.py.
//
// A block computes some pixels of one sample; a warp computes 16 of them at a time. The matrices that the pixels are
// multiplied by are computed once and stay in shared memory: the words, the mixed words, the gates of the sentence, and
// the two other parts of the mix, multiplied by the sentence. A pixel is read once and its result is written once. The
// shares of words and channels stay in registers from one product to the next.

#pragma once

#include <cmath>

#include "lockstep.h"

namespace mirrorgan::cuda::attention_mix {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kLanesOfWarp;
constexpr int kPixels = 16;  // pixels of a warp in a step
constexpr int kSteps = 8;    // steps of a block
constexpr int kBlockPixels = kWarps * kPixels * kSteps;
constexpr int kChannels = 32;
constexpr int kWords = 32;
constexpr int kColumns = 64;
// Rows in shared memory are padded, so that the lanes of a warp read from different banks.
constexpr int kNarrow = kChannels + 8;
constexpr int kWide = kColumns + 8;

struct Arguments {
  const uint16_t* features;  // (samples, pixels, 32)
  const uint16_t* words;     // (samples, words, 32)
  const bool* mask;          // (samples, words)
  const uint16_t* sentence;  // (samples, 32), or null
  const uint16_t* weight;    // (32, 32), or null
  const uint16_t* mix;       // (columns, 2 or 3 times 32)
  uint16_t* out;             // (samples, pixels, columns)
  int64_t pixels;
  int words_per_sample;
  int columns;
  bool aligned;  // whether the result can be written in Eights: columns are a multiple of 8, and `out` is aligned
};

// The right-hand sides of the products, with pairs of rows next to each other.
struct Shared {
  alignas(16) uint32_t keys[kChannels / 2 * kNarrow];
  alignas(16) uint32_t gates[kChannels / 2 * kNarrow];
  alignas(16) uint32_t mix_features[kChannels / 2 * kWide];
  alignas(16) uint32_t mix_words[kWords / 2 * kWide];
  alignas(16) uint32_t mix_gates[kChannels / 2 * kWide];
  alignas(16) uint16_t out[kWarps * kPixels * kWide];
  float shares[kWords];  // added to the scores: 0 for a real word, otherwise minus infinity
};

template <typename Machine, bool kSentence>
struct Block {
  template <typename T>
  using Lanes = typename Machine::template Lanes<T>;

  static constexpr int kParts = kSentence ? 3 : 2;

  struct Four {
    TileD tiles[4];
  };
  struct Eighth {
    TileD tiles[kColumns / 8];
  };

  const Arguments& a;
  Shared& shared;
  int64_t sample;
  int64_t first;  // pixel

  MIRRORGAN_DEVICE Block(const Arguments& arguments, Shared& memory, int64_t block)
      : a(arguments), shared(memory) {
    const int64_t blocks_per_sample = (a.pixels + kBlockPixels - 1) / kBlockPixels;
    sample = block / blocks_per_sample;
    first = block % blocks_per_sample * kBlockPixels;
  }

  MIRRORGAN_DEVICE void run() {
    Machine::template step<kWarps>([&](int warp) { prepare(warp); });
    Machine::template step<kWarps>([&](int warp) { mix_the_words(warp); });
    for (int step = 0; step < kSteps; ++step) {
      Machine::template step<kWarps>([&](int warp) { attend(warp, pixel_of(step, warp)); });
      Machine::template step<kWarps>([&](int warp) { write(warp, pixel_of(step, warp)); });
    }
  }

 private:
  MIRRORGAN_DEVICE int64_t pixel_of(int step, int warp) const { return first + (step * kWarps + warp) * kPixels; }

  MIRRORGAN_DEVICE uint16_t key(int word, int channel) const {
    const int64_t at = sample * a.words_per_sample + word;
    const bool real = word < a.words_per_sample && a.mask[at];
    return real ? a.words[at * kChannels + channel] : uint16_t{0};
  }

  MIRRORGAN_DEVICE float of_sentence(int channel) const {
    return kSentence ? as_float(a.sentence[sample * kChannels + channel]) : 0.0f;
  }

  MIRRORGAN_DEVICE float of_mix(int column, int part, int channel) const {
    return column < a.columns ? as_float(a.mix[(column * kParts + part) * kChannels + channel]) : 0.0f;
  }

  // M diag(s), as M (f o s) = (M diag(s)) f. In the paper's form M is the identity.
  MIRRORGAN_DEVICE uint16_t gate(int row, int channel) const {
    const float m = a.weight != nullptr ? as_float(a.weight[row * kChannels + channel]) : row == channel ? 1.0f : 0.0f;
    return as_bfloat16(m * of_sentence(channel));
  }

  MIRRORGAN_DEVICE void prepare(int warp) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      const int thread = warp * kLanesOfWarp + lane;
      for (int i = thread; i < kChannels / 2 * kWords; i += kThreads) {
        const int pair = i / kWords, word = i % kWords;
        shared.keys[pair * kNarrow + word] = pair_of(key(word, 2 * pair), key(word, 2 * pair + 1));
        if (kSentence) {
          shared.gates[pair * kNarrow + word] = pair_of(gate(word, 2 * pair), gate(word, 2 * pair + 1));
        }
      }
      for (int i = thread; i < kChannels / 2 * kColumns; i += kThreads) {
        const int pair = i / kColumns, column = i % kColumns, c = 2 * pair;
        shared.mix_features[pair * kWide + column] =
            pair_of(as_bfloat16(of_mix(column, 0, c)), as_bfloat16(of_mix(column, 0, c + 1)));
        if (kSentence) {
          shared.mix_gates[pair * kWide + column] = pair_of(as_bfloat16(of_mix(column, 2, c) * of_sentence(c)),
                                                            as_bfloat16(of_mix(column, 2, c + 1) * of_sentence(c + 1)));
        }
      }
      if (thread < kWords) {
        const bool real = thread < a.words_per_sample && a.mask[sample * a.words_per_sample + thread];
        shared.shares[thread] = real ? 0.0f : -INFINITY;
      }
    }
  }

  // Mixes the words: the mix can be applied before the sum over words.
  MIRRORGAN_DEVICE void mix_the_words(int warp) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = warp * kLanesOfWarp + lane; i < kWords / 2 * kColumns; i += kThreads) {
        const int pair = i / kColumns, column = i % kColumns;
        float sums[2] = {0.0f, 0.0f};
        for (int c = 0; c < kChannels; ++c) {
          const float factor = of_mix(column, 1, c);
          for (int half = 0; half < 2; ++half) {
            const uint32_t both = shared.keys[c / 2 * kNarrow + 2 * pair + half];
            sums[half] += factor * as_float(static_cast<uint16_t>(both >> 16 * (c % 2)));
          }
        }
        shared.mix_words[pair * kWide + column] = pair_of(as_bfloat16(sums[0]), as_bfloat16(sums[1]));
      }
    }
  }

  MIRRORGAN_DEVICE void attend(int warp, int64_t pixel) {
    Lanes<TileA> f[2];
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = 0; i < 8; ++i) {
        const int64_t row = pixel + lane / 4 + i % 2 * 8;
        const int channel = lane % 4 * 2 + i / 2 * 8;
        const uint16_t* at = a.features + (sample * a.pixels + row) * kChannels + channel;
        f[i / 4][lane].pairs[i % 4] = row < a.pixels ? *reinterpret_cast<const uint32_t*>(at) : 0u;
      }
    }
    Lanes<Eighth> sums;
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      sums[lane] = Eighth{};
    }
    add_product(sums, f, shared.mix_features, kWide);
    {
      Lanes<Four> shares = product(f, shared.keys);
      softmax(shares, shared.shares);
      Lanes<TileA> left[2];
      as_left_operand(left, shares);
      add_product(sums, left, shared.mix_words, kWide);
    }
    if (kSentence) {
      Lanes<Four> shares = product(f, shared.gates);
      softmax(shares, nullptr);
      Lanes<TileA> left[2];
      as_left_operand(left, shares);
      add_product(sums, left, shared.mix_gates, kWide);
    }
    uint16_t* out = shared.out + warp * kPixels * kWide;
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        for (int i = 0; i < 2; ++i) {
          const float* both = sums[lane].tiles[n].values + 2 * i;
          *reinterpret_cast<uint32_t*>(out + (lane / 4 + 8 * i) * kWide + n * 8 + lane % 4 * 2) =
              pair_of(as_bfloat16(both[0]), as_bfloat16(both[1]));
        }
      }
    }
  }

  // Adds the product of 16 pixels and a right-hand side of 32 rows to the tiles of a result.
  template <typename Tiles>
  MIRRORGAN_DEVICE static void add_product(
      Lanes<Tiles>& sums, Lanes<TileA> (&left)[2], const uint32_t* right, int stride) {
    constexpr int kTiles = sizeof(Tiles) / sizeof(TileD);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        Lanes<TileB> right_tile;
        Lanes<TileD> tile;
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          const uint32_t* pairs = right + (k * 8 + lane % 4) * stride + n * 8 + lane / 4;
          right_tile[lane].pairs[0] = pairs[0];
          right_tile[lane].pairs[1] = pairs[4 * stride];
          tile[lane] = sums[lane].tiles[n];
        }
        Machine::multiply(tile, left[k], right_tile);
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          sums[lane].tiles[n] = tile[lane];
        }
      }
    }
  }

  MIRRORGAN_DEVICE static Lanes<Four> product(Lanes<TileA> (&f)[2], const uint32_t* right) {
    Lanes<Four> sums;
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      sums[lane] = Four{};
    }
    add_product(sums, f, right, kNarrow);
    return sums;
  }

  // A softmax over the 32 columns of each of 16 rows; four lanes have a row. `added` is added to the columns unless it
  // is null.
  MIRRORGAN_DEVICE static void softmax(Lanes<Four>& rows, const float* added) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Lanes<float> highest, total;
      for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
        highest[lane] = -INFINITY;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          float& value = rows[lane].tiles[n / 2].values[2 * i + n % 2];
          if (added != nullptr) {
            value += added[n / 2 * 8 + lane % 4 * 2 + n % 2];
          }
          // Unlike the maximum of both, this keeps NaN.
          highest[lane] = value <= highest[lane] ? highest[lane] : value;
        }
      }
      for (int bits = 1; bits < 4; bits *= 2) {
        Lanes<float> other = Machine::exchange(highest, bits);
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          highest[lane] = other[lane] <= highest[lane] ? highest[lane] : other[lane];
        }
      }
      for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
        const float base = highest[lane] == -INFINITY ? 0.0f : highest[lane];  // no real word
        total[lane] = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          float& value = rows[lane].tiles[n / 2].values[2 * i + n % 2];
          value = Machine::exp(value - base);
          total[lane] += value;
        }
      }
      for (int bits = 1; bits < 4; bits *= 2) {
        Lanes<float> other = Machine::exchange(total, bits);
        for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
          total[lane] += other[lane];
        }
      }
      for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
        const float scale = total[lane] == 0.0f ? 0.0f : 1.0f / total[lane];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          rows[lane].tiles[n / 2].values[2 * i + n % 2] *= scale;
        }
      }
    }
  }

  // Turns a result into the left operand of the next product: two tiles of D have the layout of one tile of A.
  MIRRORGAN_DEVICE static void as_left_operand(Lanes<TileA> (&operand)[2], Lanes<Four>& result) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* both = result[lane].tiles[i / 2].values + i % 2 * 2;
        operand[i / 4][lane].pairs[i % 4] = pair_of(as_bfloat16(both[0]), as_bfloat16(both[1]));
      }
    }
  }

  MIRRORGAN_DEVICE void write(int warp, int64_t pixel) {
    for (int lane = Machine::first_lane(); lane < Machine::end_lane(); ++lane) {
      for (int i = lane; i < kPixels * kColumns / 8; i += kLanesOfWarp) {
        const int64_t row = pixel + i / (kColumns / 8);
        const int column = i % (kColumns / 8) * 8;
        if (row < a.pixels && column < a.columns) {
          const uint16_t* from = shared.out + (warp * kPixels + i / (kColumns / 8)) * kWide + column;
          write_eight(a.out + (sample * a.pixels + row) * a.columns + column, *reinterpret_cast<const Eight*>(from),
                      a.columns - column, a.aligned);
        }
      }
    }
  }
};

}  // namespace mirrorgan::cuda::attention_mix
