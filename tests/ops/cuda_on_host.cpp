// The code of the CUDA kernels on the host: one block after the other, and in each block all lanes of all warps.

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "conv_glu.h"
#include "conv_wgmma.h"
#include "glam_attention_mix.h"

namespace mirrorgan::cuda {
namespace {

// One thread does the work of all lanes of all warps, one after the other.
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
    // From the last warp to the first: so a step fails if it wrongly depends on another warp's work in the same step.
    for (int warp = kWarps - 1; warp >= 0; --warp) {
      work(warp);
    }
  }

  static void multiply(Lanes<TileD>& d, Lanes<TileA>& a, Lanes<TileB>& b) {
    float a_values[16][16], b_values[16][8];
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t pair = a[lane].pairs[i];
          a_values[g + i % 2 * 8][t * 2 + i / 2 * 8 + half] = as_float(static_cast<uint16_t>(pair >> 16 * half));
        }
        for (int i = 0; i < 2; ++i) {
          const uint32_t pair = b[lane].pairs[i];
          b_values[t * 2 + i * 8 + half][g] = as_float(static_cast<uint16_t>(pair >> 16 * half));
        }
      }
    }
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
          d[lane].values[i] += a_values[row][k] * b_values[k][column];
        }
      }
    }
  }

  using Matrix = MatrixAt<const unsigned char*>;

  static const unsigned char* address(const void* shared) { return static_cast<const unsigned char*>(shared); }

  template <typename Work>
  static void lanes(const Work& work) {
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      work(lane);
    }
  }

  template <typename Work>
  static void group(const Work& work) {
    step<4>(work);
  }

  // Products and copies are done only when something waits for them.
  static std::deque<std::function<void()>>& products() {
    thread_local std::deque<std::function<void()>> started;
    return started;
  }
  static void begin_products() {}
  static void commit_products() {}
  template <typename Sums>
  static void await_products(Sums&) {
    for (; !products().empty(); products().pop_front()) {
      products().front()();
    }
  }

  static void multiply_group(Warps<Lanes<GroupD>>& d, const Matrix& a, const Matrix& b, bool add) {
    products().push_back([=, &d] { multiply_now(d, a, b, add); });
  }

  static void multiply_group(
      Warps<Lanes<GroupD>>& first, Warps<Lanes<GroupD>>& last, const Matrix& a, const Matrix& b, bool add) {
    multiply_group(first, a, b, add);
    multiply_group(last, a, {b.begin + kColumnsOfGroup / 8 * b.stride, b.leading, b.stride}, add);
  }

  static std::vector<std::function<void()>>& copies() {
    thread_local std::vector<std::function<void()>> started;
    return started;
  }
  static void copy(Eight* to, const uint16_t* from, bool exists) {
    copies().push_back([=] { *to = exists ? *reinterpret_cast<const Eight*>(from) : Eight{}; });
  }
  static void show_to_products() {}

  struct Barrier {
    std::mutex mutex;
    std::condition_variable changed;
    int wanted = 0;
    int arrived = 0;
    int rounds = 0;
  };
  static void prepare(Barrier& barrier, int arrivals) { barrier.wanted = arrivals; }
  static void arrive(Barrier& barrier) { arrive(barrier, 4); }  // all four warps of a group together
  static void arrive_with_copies(Barrier& barrier) {
    for (const auto& copy : std::exchange(copies(), {})) {
      copy();
    }
    arrive(barrier, 4 * kLanesOfWarp);
  }
  static void arrive(Barrier& barrier, int arrivals) {
    const std::lock_guard lock(barrier.mutex);
    barrier.arrived += arrivals;
    if (barrier.arrived == barrier.wanted) {
      barrier.arrived = 0;
      ++barrier.rounds;
      barrier.changed.notify_all();
    }
  }
  // As on a GPU, one bit distinguishes a round from the next.
  static void await(Barrier& barrier, int round) {
    std::unique_lock lock(barrier.mutex);
    if (!barrier.changed.wait_for(lock, std::chrono::minutes(1),
                                  [&] { return (barrier.rounds & 1) != (round & 1); })) {
      std::fputs("a group waits for an arrival that never comes\n", stderr);
      std::abort();
    }
  }

 private:
  // D, and A and the transposed B in shared memory without a swizzle, have the layout of the PTX ISA.
  static void multiply_now(Warps<Lanes<GroupD>>& d, const Matrix& a, const Matrix& b, bool add) {
    for (int warp = 0; warp < 4; ++warp) {
      for (int lane = 0; lane < kLanesOfWarp; ++lane) {
        for (int i = 0; i < 32; ++i) {
          const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
          float& sum = d[warp][lane].values[i];
          sum = add ? sum : 0;
          for (int k = 0; k < kDepthOfGroup; ++k) {
            sum += element(a, row, k) * element(b, column, k);
          }
        }
      }
    }
  }

  static float element(const Matrix& matrix, int row, int k) {
    const auto* eight = matrix.begin + k / 8 * matrix.leading + row / 8 * matrix.stride + row % 8 * sizeof(Eight);
    return as_float(reinterpret_cast<const Eight*>(eight)->values[k % 8]);
  }

 public:
  static Lanes<float> exchange(const Lanes<float>& values, int bits) {
    Lanes<float> exchanged;
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      exchanged[lane] = values.values[lane ^ bits];
    }
    return exchanged;
  }

  static float exp(float x) { return std::exp(x); }
  static float reciprocal(float x) { return 1 / x; }
};

template <int kPhases>
void run_conv_glu(const conv_glu::Arguments& a, int64_t samples) {
  const auto shared = std::make_unique<conv_glu::Shared>();
  const int64_t tiles = samples * conv_glu::blocks_down(a) * conv_glu::blocks_across(a);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int block = 0; block * conv_glu::kColumns < a.columns; ++block) {
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(conv_glu::Shared));  // NaN, unless it is overwritten
      conv_glu::Block<Host, kPhases>(a, *shared, tile, block).run();
    }
  }
}

// Each group of warps is a thread. The blocks run one after the other.
template <int kForm>
void run_conv_wgmma(const conv_wgmma::Arguments& a, int blocks) {
  for (int block_index = 0; block_index < blocks; ++block_index) {
    const auto shared = std::make_unique<conv_wgmma::Shared<Host, kForm>>();
    std::memset(static_cast<void*>(shared->map), 0xff, sizeof(shared->map));
    std::memset(static_cast<void*>(shared->weight), 0xff, sizeof(shared->weight));
    conv_wgmma::Block<Host, kForm> block{a, *shared};
    block.prepare();
    Host::step<conv_wgmma::kMultiplying * conv_wgmma::kWarpsOfGroup>([&](int warp) { block.read_weight(warp); });
    std::thread reads([&] { block.read(block_index, blocks); });
    std::thread multiplies([&] { block.multiply(1, block_index, blocks); });
    block.multiply(0, block_index, blocks);
    multiplies.join();
    reads.join();
  }
}

template <bool kSentence>
void run_attention_mix(const attention_mix::Arguments& a, int64_t samples) {
  const auto shared = std::make_unique<attention_mix::Shared>();
  const int64_t blocks_per_sample = (a.pixels + attention_mix::kBlockPixels - 1) / attention_mix::kBlockPixels;
  for (int64_t block = 0; block < samples * blocks_per_sample; ++block) {
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
  const bool aligned = columns % 8 == 0 && mirrorgan::cuda::is_aligned(out);
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
  using mirrorgan::cuda::is_aligned;
  const bool aligned = channels % 8 == 0 && columns % 16 == 0 && is_aligned(x) && is_aligned(weight) &&
                       is_aligned(out);
  const mirrorgan::cuda::conv_glu::Arguments a{x, weight, bias, out, height, width, channels, columns, aligned};
  if (phases == 4) {
    mirrorgan::cuda::run_conv_glu<4>(a, samples);
  } else {
    mirrorgan::cuda::run_conv_glu<1>(a, samples);
  }
}

extern "C" void conv_wgmma_on_host(
    const uint16_t* x,
    const uint16_t* weight,
    const float* bias,
    const uint16_t* residual,
    uint16_t* out,
    int64_t samples,
    int height,
    int width,
    int blocks,
    int form) {
  using namespace mirrorgan::cuda;
  const int tiles = static_cast<int>(samples) * conv_wgmma::tiles_along(height) * conv_wgmma::tiles_along(width);
  const conv_wgmma::Arguments a{x, weight, bias, residual, out, tiles, height, width};
  if (form == conv_wgmma::kGlu) {
    run_conv_wgmma<conv_wgmma::kGlu>(a, blocks);
  } else if (form == conv_wgmma::kGluUp) {
    run_conv_wgmma<conv_wgmma::kGluUp>(a, blocks);
  } else {
    run_conv_wgmma<conv_wgmma::kAdd>(a, blocks);
  }
}
