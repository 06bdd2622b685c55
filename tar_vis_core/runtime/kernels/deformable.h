// Weighted bilinear samples of deformable attention (Deformable DETR, section 4.1) on a CPU, float32 or bfloat16.
//
// What takes PyTorch a dozen passes over memory, in one: the softmax over a query's samples, where they lie, and the
// rows of channels around each, which add up in registers. Positions, weights and sums are float32. Included once for
// each kind of processor (kernels.cpp).

// Where kLanes queries of a head sample, a lane for each: of every sample the cells and weights of the four corners.
struct Corners {
  int32_t cell[kSamples][4][kLanes];
  float weight[kSamples][4][kLanes];
};

ALWAYS_INLINE Whole bounded(Whole x, int32_t most) {
  x = x < 0 ? x * 0 : x;
  return x > most ? x * 0 + most : x;
}

// Samples at positions x, y of a map of height by width that begins at `start`; `share` is what each weighs.
ALWAYS_INLINE void place(Lanes x, Lanes y, Lanes share, int32_t height, int32_t width, int32_t start, int64_t sample,
                         Corners &corners) {
  // also false for what is not a number: such a sample is outside
  const Whole inside = (x > -1.0f) & (y > -1.0f) & (x < float(width)) & (y < float(height));
  x = inside ? x : Lanes{};
  y = inside ? y : Lanes{};
  share = inside ? share : Lanes{};
  Whole column = __builtin_convertvector(x, Whole), row = __builtin_convertvector(y, Whole);
  Lanes left = __builtin_convertvector(column, Lanes), top = __builtin_convertvector(row, Lanes);
  column -= (left > x) & 1;  // towards minus infinity
  row -= (top > y) & 1;
  left = __builtin_convertvector(column, Lanes);
  top = __builtin_convertvector(row, Lanes);
  const Lanes right = x - left, below = y - top;
  for (int64_t c = 0; c < 4; ++c) {
    const Whole at_column = column + int32_t(c % 2), at_row = row + int32_t(c / 2);
    const Whole there = (at_column >= 0) & (at_column < width) & (at_row >= 0) & (at_row < height);
    const Lanes part = share * (c % 2 ? right : 1.0f - right) * (c / 2 ? below : 1.0f - below);
    // a corner outside weighs nothing, wherever it is read
    const Whole cell = start + bounded(at_row, height - 1) * width + bounded(at_column, width - 1);
    std::memcpy(corners.cell[sample][c], &cell, sizeof cell);
    store(corners.weight[sample][c], there ? part : Lanes{});
  }
}

// Queries begin..end-1 of one head of one frame, whose values lie side by side in `map`. A `fixed_width` but 0 is known
// where this is inlined, and the sums stay in registers.
template <class T>
ALWAYS_INLINE void sample(const DeformableTask<T> &task, const T *map, int64_t frame, int64_t head, int64_t begin,
                          int64_t end, const int64_t fixed_width) {
  const int64_t width = fixed_width ? fixed_width : task.width, count = task.levels * task.points;
  const int64_t parts = fixed_width / kLanes;
  for (int64_t first = begin; first < end; first += kLanes) {
    float share[kSamples][kLanes], across[kSamples][kLanes], down[kSamples][kLanes], reference[2][kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t query = std::min(first + lane, end - 1), row = frame * task.queries + query;
      const T *logit = task.logits + row * task.logit_step + head * count;
      const T *offset = task.offsets + row * task.offset_step + 2 * head * count;
      for (int64_t i = 0; i < count; ++i) {
        share[i][lane] = logit[i];
        across[i][lane] = offset[2 * i];
        down[i][lane] = offset[2 * i + 1];
      }
      for (int64_t axis = 0; axis < 2; ++axis) reference[axis][lane] = task.reference[2 * query + axis];
    }
    Lanes most = load(share[0]), total = {};
    for (int64_t i = 1; i < count; ++i) most = load(share[i]) > most ? load(share[i]) : most;
    for (int64_t i = 0; i < count; ++i) {
      const Lanes own = exp_of(load(share[i]) - most);
      total += own;
      store(share[i], own);
    }
    Corners corners;
    const Lanes factor = 1.0f / total;
    for (int64_t level = 0, i = 0, start = 0; level < task.levels; ++level) {
      const int32_t h = int32_t(task.shapes[2 * level]), w = int32_t(task.shapes[2 * level + 1]);
      for (; i < (level + 1) * task.points; ++i) {
        place(load(reference[0]) * float(w) + (load(across[i]) - 0.5f),
              load(reference[1]) * float(h) + (load(down[i]) - 0.5f), load(share[i]) * factor, h, w, int32_t(start), i,
              corners);
      }
      start += h * w;
    }
    for (int64_t lane = 0; lane < std::min(kLanes, end - first); ++lane) {
      T *out = task.out + ((frame * task.queries + first + lane) * task.heads + head) * width;
      Lanes sum[4][kWidest / kLanes] = {};  // one for each corner, as one alone would wait for itself
      std::vector<float> sums(fixed_width ? 0 : width);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t corner = 0; corner < 4; ++corner) {
          const T *from = map + corners.cell[i][corner][lane] * width;
          const float weight = corners.weight[i][corner][lane];
          if (parts == 1) sum[corner][0] += weight * load(from);
          for (int64_t k = 0; k + 1 < parts; k += 2) {
            Lanes a, b;
            load_two(from + k * kLanes, a, b);
            sum[corner][k] += weight * a;
            sum[corner][k + 1] += weight * b;
          }
          for (int64_t k = 0; !fixed_width && k < width; ++k) sums[k] += weight * from[k];
        }
      }
      for (int64_t k = 0; k < parts; ++k) sum[0][k] = (sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]);
      if (parts == 1) store(out, sum[0][0]);
      for (int64_t k = 0; k + 1 < parts; k += 2) store_two(out + k * kLanes, sum[0][k], sum[0][k + 1]);
      std::copy(sums.begin(), sums.end(), out);
    }
  }
}

template <class T>
void deformable(const DeformableTask<T> &task, const T *map, int64_t frame, int64_t head, int64_t begin, int64_t end) {
  if (task.width == 16) return sample(task, map, frame, head, begin, end, 16);
  if (task.width == 32) return sample(task, map, frame, head, begin, end, 32);
  if (task.width == 64) return sample(task, map, frame, head, begin, end, 64);
  sample(task, map, frame, head, begin, end, 0);
}
