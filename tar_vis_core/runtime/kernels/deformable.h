// Weighted bilinear samples of deformable attention (Deformable DETR, section 4.1) on a CPU, float32.
//
// What takes PyTorch a dozen passes over memory, in one: the softmax over a query's samples, where they lie, and the
// rows of channels around each, which add up in registers. Included once for each kind of processor (kernels.cpp).

// `weights` has room for kSamples, of which `count` are asked for.
ALWAYS_INLINE void softmax(const float *logits, int64_t count, float *weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = logits[i];
  for (int64_t i = count; i % kLanes; ++i) weights[i] = -std::numeric_limits<float>::infinity();
  Lanes most = load(weights), sum = {};
  for (int64_t i = kLanes; i < count; i += kLanes) most = load(weights + i) > most ? load(weights + i) : most;
  const float high = greatest_of(most);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Lanes share = exp_of(load(weights + i) - high);
    sum += share;
    store(weights + i, share);
  }
  const float factor = 1.0f / sum_of(sum);
  for (int64_t i = 0; i < count; i += kLanes) store(weights + i, load(weights + i) * factor);
}

// Where the samples of a query and head lie: the first cells and weights of the four corners around each.
struct Corners {
  int32_t cell[4][kSamples];
  float weight[4][kSamples];
};

ALWAYS_INLINE Whole bounded(Whole x, Whole most) {
  x = x < 0 ? x * 0 : x;
  return x > most ? most : x;
}

// Samples at positions x, y of maps of height by width that begin at `start`; `share` is what each weighs.
ALWAYS_INLINE void place(Lanes x, Lanes y, Lanes share, Whole height, Whole width, Whole start, int64_t first,
                         Corners &corners) {
  const Lanes h = __builtin_convertvector(height, Lanes), w = __builtin_convertvector(width, Lanes);
  // also false for what is not a number: such a sample is outside
  const Whole inside = (x > -1.0f) & (y > -1.0f) & (x < w) & (y < h);
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
    std::memcpy(corners.cell[c] + first, &cell, sizeof cell);
    store(corners.weight[c] + first, there ? part : Lanes{});
  }
}

// Queries begin..end-1 of one head of one frame, whose values lie side by side in `map`. A `fixed_width` but 0 is known
// where this is inlined, and the sums stay in registers.
ALWAYS_INLINE void sample(const DeformableTask &task, const float *map, int64_t frame, int64_t head, int64_t begin,
                          int64_t end, const int64_t fixed_width) {
  const int64_t width = fixed_width ? fixed_width : task.width, count = task.levels * task.points;
  Whole heights[kSamples / kLanes] = {}, widths[kSamples / kLanes] = {}, starts[kSamples / kLanes] = {};
  for (int64_t i = 0, start = 0; i < count; ++i) {
    const int64_t *shape = task.shapes + 2 * (i / task.points);
    if (i && i % task.points == 0) start += shape[-2] * shape[-1];
    heights[i / kLanes][i % kLanes] = int32_t(shape[0]);
    widths[i / kLanes][i % kLanes] = int32_t(shape[1]);
    starts[i / kLanes][i % kLanes] = int32_t(start);
  }
  for (int64_t query = begin; query < end; ++query) {
    const int64_t row = (frame * task.queries + query) * task.heads + head;
    float weights[kSamples] = {}, across[kSamples] = {}, down[kSamples] = {};
    softmax(task.logits + row * count, count, weights);
    const float *offset = task.offsets + 2 * row * count, *reference = task.reference + 2 * query;
    for (int64_t i = 0; i < count; ++i) {
      across[i] = offset[2 * i] - 0.5f;
      down[i] = offset[2 * i + 1] - 0.5f;
    }
    Corners corners;
    for (int64_t i = 0; i < count; i += kLanes) {
      const Whole h = heights[i / kLanes], w = widths[i / kLanes];
      place(reference[0] * __builtin_convertvector(w, Lanes) + load(across + i),
            reference[1] * __builtin_convertvector(h, Lanes) + load(down + i), load(weights + i), h, w,
            starts[i / kLanes], i, corners);
    }
    float *out = task.out + row * width;
    Lanes sum[4][kWidest / kLanes] = {};  // one for each corner, as one alone would wait for itself
    if (!fixed_width) std::fill(out, out + width, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t corner = 0; corner < 4; ++corner) {
        const float *from = map + corners.cell[corner][i] * width, weight = corners.weight[corner][i];
        if (fixed_width) {
          for (int64_t k = 0; k < width / kLanes; ++k) sum[corner][k] += weight * load(from + k * kLanes);
        } else {
          for (int64_t k = 0; k < width; ++k) out[k] += weight * from[k];
        }
      }
    }
    for (int64_t k = 0; k < fixed_width / kLanes; ++k) {
      store(out + k * kLanes, (sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]));
    }
  }
}

void deformable(const DeformableTask &task, const float *map, int64_t frame, int64_t head, int64_t begin, int64_t end) {
  if (task.width == 16) return sample(task, map, frame, head, begin, end, 16);
  if (task.width == 32) return sample(task, map, frame, head, begin, end, 32);
  if (task.width == 64) return sample(task, map, frame, head, begin, end, 64);
  sample(task, map, frame, head, begin, end, 0);
}
