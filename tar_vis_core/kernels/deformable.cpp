// Weighted bilinear samples of deformable attention (Deformable DETR, section 4.1) on a CPU, float32.
//
// All that PyTorch needs a dozen passes over memory for, in one: a query's samples are found, and the rows of
// D = dim / heads channels around each are added up in registers. Plain C interface, called through ctypes.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

struct Task {
  const float *value;      // (frames, cells, heads, width)
  const float *offsets;    // (frames, queries, heads, levels, points, 2) as x, y in cells of their level
  const float *weights;    // (frames, queries, heads, levels, points)
  const float *reference;  // (queries, 2) as x, y in 0..1
  const int64_t *shapes;   // (levels, 2) as height, width
  float *out;              // (frames, queries, heads, width)
  int64_t cells, queries, heads, levels, points, width;
};

inline __attribute__((always_inline)) void add_row(float *sum, const float *row, float weight, int64_t width) {
  for (int64_t c = 0; c < width; ++c) sum[c] += weight * row[c];
}

// WIDTH > 0 fixes the width, so that the sums stay in registers.
template <int WIDTH>
inline __attribute__((always_inline)) void sample(const Task &task, int64_t begin, int64_t end) {
  const int64_t width = WIDTH > 0 ? WIDTH : task.width, step = task.heads * width;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t frame = index / task.queries;
    const float *reference = task.reference + 2 * (index % task.queries);
    for (int64_t head = 0; head < task.heads; ++head) {
      const int64_t first = (index * task.heads + head) * task.levels * task.points;
      const float *offset = task.offsets + 2 * first, *weight = task.weights + first;
      const float *map = task.value + frame * task.cells * step + head * width;
      float fixed[WIDTH > 0 ? WIDTH : 1] = {};
      float *out = task.out + index * step + head * width, *sum = WIDTH > 0 ? fixed : out;
      if (WIDTH == 0) std::fill(out, out + width, 0.0f);
      for (int64_t level = 0; level < task.levels; ++level) {
        const int64_t h = task.shapes[2 * level], w = task.shapes[2 * level + 1];
        for (int64_t point = 0; point < task.points; ++point, offset += 2, ++weight) {
          const float x = reference[0] * w + (offset[0] - 0.5f), y = reference[1] * h + (offset[1] - 0.5f);
          // also false for what is not a number: such a sample is outside
          if (!(x > -1.0f && y > -1.0f && x < w && y < h)) continue;
          const float left = std::floor(x), top = std::floor(y), right = x - left, below = y - top;
          const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
          const float *corner = map + (row * w + column) * step;
          if (row >= 0 && column >= 0) add_row(sum, corner, *weight * (1 - below) * (1 - right), width);
          if (row >= 0 && column + 1 < w) add_row(sum, corner + step, *weight * (1 - below) * right, width);
          if (row + 1 < h && column >= 0) add_row(sum, corner + w * step, *weight * below * (1 - right), width);
          if (row + 1 < h && column + 1 < w) add_row(sum, corner + (w + 1) * step, *weight * below * right, width);
        }
        map += h * w * step;
      }
      if (WIDTH > 0) std::copy(fixed, fixed + width, out);
    }
  }
}

WIDEST_VECTORS void sample_16(const Task &task, int64_t begin, int64_t end) { sample<16>(task, begin, end); }
WIDEST_VECTORS void sample_32(const Task &task, int64_t begin, int64_t end) { sample<32>(task, begin, end); }
WIDEST_VECTORS void sample_64(const Task &task, int64_t begin, int64_t end) { sample<64>(task, begin, end); }
WIDEST_VECTORS void sample_any(const Task &task, int64_t begin, int64_t end) { sample<0>(task, begin, end); }

}  // namespace

// Gives out; sizes as in Task, all memory contiguous. Runs on the threads of OpenMP, which are torch's.
extern "C" void tar_vis_deformable(const float *value, const float *offsets, const float *weights,
                                   const float *reference, const int64_t *shapes, float *out, int64_t frames,
                                   int64_t cells, int64_t queries, int64_t heads, int64_t levels, int64_t points,
                                   int64_t width) {
  const Task task{value, offsets, weights, reference, shapes, out, cells, queries, heads, levels, points, width};
  const auto run = width == 16 ? sample_16 : width == 32 ? sample_32 : width == 64 ? sample_64 : sample_any;
  const int64_t chunk = 32, total = frames * queries, chunks = (total + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic)
  for (int64_t c = 0; c < chunks; ++c) run(task, c * chunk, std::min(total, (c + 1) * chunk));
}
