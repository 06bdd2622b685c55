// What a decoder layer computes between its products and its attention, float32.
//
// Included once for each kind of processor (kernels.cpp). Channels are a multiple of kPanel, so of kLanes.

// Layer norm (Ba et al. 2016) of rows begin..end-1.
void norm_rows(const NormTask &task, int64_t begin, int64_t end) {
  const int64_t channels = task.channels;
  for (int64_t r = begin; r < end; ++r) {
    const float *x = task.x + r * channels;
    Lanes sum = {}, square = {};
    for (int64_t c = 0; c < channels; c += kLanes) sum += load(x + c);
    const float mean = sum_of(sum) / channels;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Lanes apart = load(x + c) - mean;
      square += apart * apart;
    }
    const float factor = 1 / std::sqrt(sum_of(square) / channels + task.eps);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Lanes found = (load(x + c) - mean) * factor * load(task.weight + c) + load(task.bias + c);
      store(task.out + r * channels + c, found);
      if (task.added) store(task.sum + r * channels + c, found + load(task.added + r * channels + c));
    }
  }
}

// The cells along one side that a box touches from `low` to `high`, shares of the side: first <= cell < last.
ALWAYS_INLINE void touched(float low, float high, int64_t cells, int64_t &first, int64_t &last) {
  const float margin = kMargin * (high - low) + 0.002f;
  low = std::min(std::max(low - margin, 0.0f), 0.998f);
  high = std::min(std::max(high + margin, 0.002f), 1.0f);
  for (first = 0; first < cells && !(float(first + 1) / cells > low); ++first) continue;
  for (last = first; last < cells && float(last) / cells < high; ++last) continue;
}

// Which cells a query attends to: those in its box where its mask is positive, or all in its box if none is.
void attended_cells(const CellsTask &task, int64_t row) {
  const float *embedding = task.embeddings + row * task.channels;
  const float *features = task.features + row / task.queries * task.height * task.width * task.channels;
  uint8_t *keep = task.keep + row * task.height * task.width;
  int64_t left = 0, top = 0, right = task.width, bottom = task.height;
  if (task.boxes) {
    touched(task.boxes[4 * row], task.boxes[4 * row + 2], task.width, left, right);
    touched(task.boxes[4 * row + 1], task.boxes[4 * row + 3], task.height, top, bottom);
  }
  std::memset(keep, 0, task.height * task.width);
  bool any = false;
  for (int64_t y = top; y < bottom; ++y) {
    for (int64_t x = left; x < right; ++x) {
      const float *cell = features + (y * task.width + x) * task.channels;
      Lanes sum = {};
      for (int64_t c = 0; c < task.channels; c += kLanes) sum += load(embedding + c) * load(cell + c);
      const bool inside = sum_of(sum) >= 0;
      keep[y * task.width + x] = inside;
      any |= inside;
    }
  }
  for (int64_t y = top; y < bottom && !any; ++y) std::memset(keep + y * task.width + left, 1, right - left);
}
