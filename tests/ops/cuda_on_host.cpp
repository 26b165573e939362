// The CUDA kernels' code on the host: blocks one after the other, and in each all lanes of all warps.

#include <cmath>
#include <cstdint>
#include <memory>

#include "conv_glu.h"
#include "glam_attention_mix.h"

namespace mirrorgan::cuda {
namespace {

// All lanes of all warps: one thread does the work of each in turn.
struct Host {
  template <typename T>
  struct Lanes {
    T values[kLanesOfWarp];
    T& operator[](int lane) { return values[lane]; }
  };
  template <typename T>
  struct Warps {
    T values[32];
    T& operator[](int warp) { return values[warp]; }
  };

  static int first_lane() { return 0; }
  static int end_lane() { return kLanesOfWarp; }

  template <int kWarps, typename Work>
  static void step(const Work& work) {
    // from the last to the first: a step that needs another warp's work of the same step is wrong, and fails
    for (int warp = kWarps - 1; warp >= 0; --warp) {
      work(warp);
    }
  }

  static void multiply(Lanes<TileD>& d, Lanes<TileA>& a, Lanes<TileB>& b) {
    float of_a[16][16], of_b[16][8];
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t pair = a[lane].pairs[i];
          of_a[g + i % 2 * 8][t * 2 + i / 2 * 8 + half] = as_float(static_cast<uint16_t>(pair >> 16 * half));
        }
        for (int i = 0; i < 2; ++i) {
          const uint32_t pair = b[lane].pairs[i];
          of_b[t * 2 + i * 8 + half][g] = as_float(static_cast<uint16_t>(pair >> 16 * half));
        }
      }
    }
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
          d[lane].values[i] += of_a[row][k] * of_b[k][column];
        }
      }
    }
  }

  static Lanes<float> exchange(const Lanes<float>& values, int bits) {
    Lanes<float> exchanged;
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      exchanged[lane] = values.values[lane ^ bits];
    }
    return exchanged;
  }

  static float exp(float x) { return std::exp(x); }
};

template <int kPhases>
void run_conv_glu(const conv_glu::Arguments& a, int64_t samples) {
  const auto shared = std::make_unique<conv_glu::Shared>();
  const int64_t tiles = samples * conv_glu::blocks_down(a) * conv_glu::blocks_across(a);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int block = 0; block * conv_glu::kColumns < a.columns; ++block) {
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(conv_glu::Shared));  // NaN, unless it is written
      conv_glu::Block<Host, kPhases>(a, *shared, tile, block).run();
    }
  }
}

template <bool kSentence>
void run_attention_mix(const attention_mix::Arguments& a, int64_t samples) {
  const auto shared = std::make_unique<attention_mix::Shared>();
  const int64_t of_sample = (a.pixels + attention_mix::kOfBlock - 1) / attention_mix::kOfBlock;
  for (int64_t block = 0; block < samples * of_sample; ++block) {
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(attention_mix::Shared));
    attention_mix::Block<Host, kSentence>(a, *shared, block).run();
  }
}

}  // namespace
}  // namespace mirrorgan::cuda

extern "C" void glam_attention_mix_on_host(
    const uint16_t* features,
    const uint16_t* words,
    const bool* mask,
    const uint16_t* sentence,
    const uint16_t* weight,
    const uint16_t* mix,
    uint16_t* out,
    int64_t samples,
    int64_t pixels,
    int words_per_sample,
    int columns) {
  const bool aligned = columns % 8 == 0 && mirrorgan::cuda::begins_an_eight(out);
  const mirrorgan::cuda::attention_mix::Arguments a{features, words,  mask,             sentence, weight, mix,
                                                    out,      pixels, words_per_sample, columns,  aligned};
  if (sentence != nullptr) {
    mirrorgan::cuda::run_attention_mix<true>(a, samples);
  } else {
    mirrorgan::cuda::run_attention_mix<false>(a, samples);
  }
}

extern "C" void conv_glu_on_host(
    const uint16_t* x,
    const uint16_t* weight,
    const float* bias,
    uint16_t* out,
    int64_t samples,
    int height,
    int width,
    int channels,
    int columns,
    int phases) {
  using mirrorgan::cuda::begins_an_eight;
  const bool aligned = channels % 8 == 0 && columns % 16 == 0 && begins_an_eight(x) && begins_an_eight(weight) &&
                       begins_an_eight(out);
  const mirrorgan::cuda::conv_glu::Arguments a{x, weight, bias, out, height, width, channels, columns, aligned};
  if (phases == 4) {
    mirrorgan::cuda::run_conv_glu<4>(a, samples);
  } else {
    mirrorgan::cuda::run_conv_glu<1>(a, samples);
  }
}
