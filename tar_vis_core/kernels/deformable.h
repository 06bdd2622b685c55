// Weighted bilinear samples of deformable attention (Deformable DETR, section 4.1) on a CPU, float32.
//
// All that PyTorch needs a dozen passes over memory for, in one: the softmax over a query's samples, where they lie, and
// the rows of D = dim / heads channels around each, which add up in registers. Plain C interface, called by ctypes.

// Included once for each kind of processor (kernels.cpp).

ALWAYS_INLINE void add_row(float *sum, const float *row, float weight, int64_t width) {
  for (int64_t c = 0; c < width; ++c) sum[c] += weight * row[c];
}

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

// Where `fixed_width` is not 0 it is known where this is inlined, and the sums stay in registers.
ALWAYS_INLINE void sample(const DeformableTask &task, int64_t begin, int64_t end, const int64_t fixed_width) {
  const int64_t width = fixed_width ? fixed_width : task.width, step = task.heads * width;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t frame = index / task.queries;
    const float *reference = task.reference + 2 * (index % task.queries);
    for (int64_t head = 0; head < task.heads; ++head) {
      const int64_t first = (index * task.heads + head) * task.levels * task.points;
      float weights[kSamples] = {};
      softmax(task.logits + first, task.levels * task.points, weights);
      const float *offset = task.offsets + 2 * first, *weight = weights;
      const float *map = task.value + frame * task.cells * step + head * width;
      float fixed[kWidest], *out = task.out + index * step + head * width, *sum = fixed_width ? fixed : out;
      for (int64_t c = 0; c < width; ++c) sum[c] = 0;
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
      if (fixed_width) std::memcpy(out, fixed, width * sizeof(float));
    }
  }
}

void deformable(const DeformableTask &task, int64_t begin, int64_t end) {
  if (task.width == 16) return sample(task, begin, end, 16);
  if (task.width == 32) return sample(task, begin, end, 32);
  if (task.width == 64) return sample(task, begin, end, 64);
  sample(task, begin, end, 0);
}
