// Mean and variance of each column of a matrix (rows, channels): a channels_last map, or one image of it.
//
// The matrix is cut into chunks of rows, whose size does not depend on the number of threads. A chunk fits into the
// second-level cache and is processed one column of vectors at a time. The statistics of the chunks are merged in order,
// in float64, so the bits do not depend on the number of threads.

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

namespace mirrorgan {

constexpr int64_t kChunk = 256;  // rows: 64 KiB for 128 channels in bfloat16
constexpr int64_t kPivotRows = 16;

// Computes the mean of the rows and the sum of (x - mean)^2, which are `channels` apart in `sums`. To avoid cancellation, a
// pivot is subtracted first: the mean of the first rows. A single row could be an outlier, far from the others.
template <typename scalar_t, int Lanes>
MIRRORGAN_INLINE void measure_column(
    const scalar_t* x, int64_t channels, int64_t first, int64_t end, int64_t column, float* sums) {
  using Float = typename Vector<Lanes>::Float;
  x += column;
  const int64_t end_of_pivot = end - first < kPivotRows ? end : first + kPivotRows;
  Float pivot = {}, sum = {}, squares = {};
  for (int64_t row = first; row < end_of_pivot; ++row) {
    Float value;
    load<Lanes>(x + row * channels, value);
    pivot += value;
  }
  pivot *= 1.0f / static_cast<float>(end_of_pivot - first);
  for (int64_t row = first; row < end; ++row) {
    Float value;
    load<Lanes>(x + row * channels, value);
    value -= pivot;
    sum += value;
    squares += value * value;
  }
  const Float offset = sum * (1.0f / static_cast<float>(end - first));
  store<Lanes>(pivot + offset, sums + column);
  store<Lanes>(squares - sum * offset, sums + channels + column);
}

// Computes mean and biased variance over all rows, from those of the chunks, (chunks, 2, channels).
inline void merge_statistics(
    const float* measured, int64_t rows, int64_t channels, float* means, float* variances) {
  const auto over_chunks = [&](auto add) {
    const float* chunk = measured;
    for (int64_t first = 0; first < rows; first += kChunk, chunk += 2 * channels) {
      const auto count = static_cast<double>(rows - first < kChunk ? rows - first : kChunk);
      for (int64_t c = 0; c < channels; ++c) {
        add(c, count, chunk[c], chunk[channels + c]);
      }
    }
  };
  std::vector<double> mean(static_cast<size_t>(channels)), square(static_cast<size_t>(channels));
  over_chunks([&](int64_t c, double count, double chunk_mean, double) { mean[c] += count / rows * chunk_mean; });
  over_chunks([&](int64_t c, double count, double chunk_mean, double squares) {
    square[c] += squares + count * (chunk_mean - mean[c]) * (chunk_mean - mean[c]);
  });
  for (int64_t c = 0; c < channels; ++c) {
    means[c] = static_cast<float>(mean[c]);
    variances[c] = static_cast<float>(square[c] < 0 ? 0.0 : square[c] / rows);  // unlike std::max, this keeps NaN
  }
}

}  // namespace mirrorgan
