// Group norm (Wu and He 2018) of maps with their channels last, float32.
//
// PyTorch's own takes the variance as a difference of two large numbers there, and loses three digits where a group
// varies little around its mean. Here every channel is first moved by its first value.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

const int64_t kRows = 64;  // float32 sums of so many values, which then add up in double

// Adds the sums of (x - shift) and of its square over some rows, channel by channel.
WIDEST_VECTORS void add_sums(const float *x, const float *shift, int64_t rows, int64_t channels, float *part,
                             double *sum) {
  std::fill(part, part + 2 * channels, 0.0f);
  for (int64_t r = 0; r < rows; ++r, x += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float moved = x[c] - shift[c];
      part[c] += moved;
      part[channels + c] += moved * moved;
    }
  }
  for (int64_t c = 0; c < 2 * channels; ++c) sum[c] += part[c];
}

WIDEST_VECTORS void scale_rows(const float *x, const float *scale, const float *shift, int64_t rows, int64_t channels,
                               float *out) {
  for (int64_t r = 0; r < rows; ++r, x += channels, out += channels) {
    for (int64_t c = 0; c < channels; ++c) out[c] = x[c] * scale[c] + shift[c];
  }
}

// out = x * scale + shift, from the sums over all rows.
void finish(const double *sum, const float *first, const float *weight, const float *bias, int64_t rows,
            int64_t channels, int64_t groups, float eps, float *scale, float *shift) {
  const int64_t size = channels / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * size;
    double mean = 0, variance = 0;
    for (int64_t c = begin; c < begin + size; ++c) mean += (first[c] + sum[c] / rows) / size;
    for (int64_t c = begin; c < begin + size; ++c) {
      const double own = sum[c] / rows, apart = first[c] + own - mean;
      variance += (sum[channels + c] / rows - own * own + apart * apart) / size;
    }
    const double factor = 1 / std::sqrt(std::max(variance, 0.0) + eps);
    for (int64_t c = begin; c < begin + size; ++c) {
      scale[c] = static_cast<float>(factor * weight[c]);
      shift[c] = static_cast<float>(bias[c] - mean * factor * weight[c]);
    }
  }
}

}  // namespace

// x and out (frames, rows, channels), weight and bias (channels).
extern "C" void tar_vis_group_norm(const float *x, const float *weight, const float *bias, float *out, int64_t frames,
                                   int64_t rows, int64_t channels, int64_t groups, float eps) {
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t frame = 0; frame < frames; ++frame, x += rows * channels, out += rows * channels) {
    std::vector<double> sum(2 * channels, 0.0);
    std::vector<float> scale(channels), shift(channels);
#pragma omp parallel
    {
      std::vector<double> own(2 * channels, 0.0);
      std::vector<float> part(2 * channels);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        add_sums(x + b * kRows * channels, x, std::min(kRows, rows - b * kRows), channels, part.data(), own.data());
      }
#pragma omp critical
      for (int64_t c = 0; c < 2 * channels; ++c) sum[c] += own[c];
#pragma omp barrier
#pragma omp single
      finish(sum.data(), x, weight, bias, rows, channels, groups, eps, scale.data(), shift.data());
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        scale_rows(x + b * kRows * channels, scale.data(), shift.data(), std::min(kRows, rows - b * kRows), channels,
                   out + b * kRows * channels);
      }
    }
  }
}
