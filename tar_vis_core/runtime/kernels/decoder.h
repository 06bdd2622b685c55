// What a decoder computes between its products and its attention, masks, and the input, float32; layer norm bfloat16,
// too.
//
// Included once for each kind of processor (kernels.cpp). Channels are a multiple of kPanel, so of kLanes.

// Layer norm (Ba et al. 2016) of rows begin..end-1.
template <class T>
void norm_rows(const NormTask<T> &task, int64_t begin, int64_t end) {
  const int64_t channels = task.channels;
  for (int64_t r = begin; r < end; ++r) {
    const T *x = task.x + r * channels;
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
      if (task.added) store(task.sum + r * channels + c, found + load(task.added + r % task.added_rows * channels + c));
    }
  }
}

// A side of a box with its margin, and the cells that it touches: first <= cell < last.
struct Side {
  float low, high;
  int64_t first, last;
};

ALWAYS_INLINE Side side_of(const float *box, int64_t cells) {
  const float margin = kMargin * (box[2] - box[0]) + 0.002f;
  Side side = {std::min(std::max(box[0] - margin, 0.0f), 0.998f), std::min(std::max(box[2] + margin, 0.002f), 1.0f), 0, 0};
  while (side.first < cells && !(float(side.first + 1) / cells > side.low)) ++side.first;
  for (side.last = side.first; side.last < cells && float(side.last) / cells < side.high;) ++side.last;
  return side;
}

// Which cells a query attends to: those in its box where its mask is positive, or all in its box if none is.
void attended_cells(const CellsTask &task, int64_t row) {
  const float *embedding = task.embeddings + row * task.channels;
  const float *features = task.features + row / task.queries * task.height * task.width * task.channels;
  uint8_t *keep = task.keep + row * task.height * task.width;
  const float everything[] = {0, 0, 1, 1}, *box = task.boxes ? task.boxes + 4 * row : everything;
  const Side across = side_of(box, task.width), down = side_of(box + 1, task.height);
  std::memset(keep, 0, task.height * task.width);
  bool any = false;
  for (int64_t y = down.first; y < down.last; ++y) {
    for (int64_t x = across.first; x < across.last; ++x) {
      const float *cell = features + (y * task.width + x) * task.channels;
      Lanes sum = {};
      for (int64_t c = 0; c < task.channels; c += kLanes) sum += load(embedding + c) * load(cell + c);
      const bool inside = sum_of(sum) >= 0;
      keep[y * task.width + x] = inside;
      any |= inside;
    }
  }
  for (int64_t y = down.first; y < down.last && !any; ++y) {
    std::memset(keep + y * task.width + across.first, 1, across.last - across.first);
  }
}

// The places of points of a grid in a box with its margin, as SampleTask wants them.
void grid_places(const float *box, int64_t points, float *places) {
  const Side across = side_of(box, 0), down = side_of(box + 1, 0);
  for (int64_t i = 0; i < points * points; ++i) {
    places[2 * i] = across.low + (i % points + 0.5f) / points * (across.high - across.low);
    places[2 * i + 1] = down.low + (i / points + 0.5f) / points * (down.high - down.low);
  }
}

// Where the centre of a cell lies on the points of a grid that spans a side: between `point` and the next.
struct Between {
  int64_t point;
  float share;
};

ALWAYS_INLINE Between on_grid(const Side &side, int64_t cell, int64_t cells, int64_t points) {
  const float place = ((cell + 0.5f) / cells - side.low) / (side.high - side.low) * points - 0.5f;
  const float bounded = std::min(std::max(0.0f, place), points - 1.0f);
  const int64_t point = std::min(int64_t(bounded), points - 2);
  return {point, bounded - point};
}

// A mask: its product and what its grid adds in its box; beyond it not above -1.
void draw_mask(const DrawTask &task, int64_t mask) {
  const int64_t width = task.width, height = task.height, points = task.points;
  const float *box = task.boxes + 4 * mask, *grid = task.grids + mask * points * points * task.step;
  const Side across = side_of(box, width), down = side_of(box + 1, height);
  std::vector<Between> columns(width);
  std::vector<float> line(points);
  for (int64_t x = 0; x < width; ++x) columns[x] = on_grid(across, x, width, points);
  for (int64_t y = 0; y < height; ++y) {
    const Between row = on_grid(down, y, height, points);
    const float *above = grid + row.point * points * task.step, *below = above + points * task.step;
    for (int64_t i = 0; i < points; ++i) {
      line[i] = above[i * task.step] + row.share * (below[i * task.step] - above[i * task.step]);
    }
    const bool within = y >= down.first && y < down.last;
    const float *product = task.products + (mask * height + y) * width;
    float *out = task.out + (mask * height + y) * width;
    for (int64_t x = 0; x < width; ++x) {
      const float *at = &line[columns[x].point];
      const float found = product[x] + at[0] + columns[x].share * (at[1] - at[0]);
      const bool inside = within && x >= across.first && x < across.last;
      out[x] = !inside && found > -1 ? -1 : found;  // what is not a number stays so
    }
  }
}

// Whether pixels are above zero: rows down.begin..down.end-1 of a map resized along both axes, and as many columns.
void resized_mask(const float *map, int64_t step, const Axis &down, const Axis &across, uint8_t *mask) {
  const int64_t width = across.end - across.begin, top = down.first[down.begin];
  std::vector<float> lines((down.last[down.end - 1] + 1 - top) * width), sum(width);
  float *line = lines.data();
  for (int64_t y = top; y <= down.last[down.end - 1]; ++y) {
    for (int64_t x = across.begin; x < across.end; ++x) {
      float own = 0;
      for (int64_t i = across.first[x]; i <= across.last[x]; ++i) own += across.weights[x * across.inputs + i] * map[y * step + i];
      *line++ = own;
    }
  }
  for (int64_t y = down.begin; y < down.end; ++y, mask += width) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t i = down.first[y]; i <= down.last[y]; ++i) {
      const float weight = down.weights[y * down.inputs + i], *from = &lines[(i - top) * width];
      for (int64_t x = 0; x < width; ++x) sum[x] += weight * from[x];
    }
    for (int64_t x = 0; x < width; ++x) mask[x] = sum[x] > 0;
  }
}

// A row of bytes as (x - mean) / std, and zeros from `count` on.
void normalized_row(const uint8_t *x, const float *mean, const float *std, int64_t count, int64_t padded, float *out) {
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - mean[i]) / std[i];
  std::fill(out + count, out + padded, 0.0f);
}
