// A depthwise convolution or a pooling, and products over channels, one after the other, on maps whose channels lie side by side. What
// lies between them never leaves the cache.
//
// Channels come kLanes at a time. The last ones may overlap those before: they are computed twice, and nothing is read
// or written beyond the end. So there are kPanel channels at least.

// Included once for each kind of processor (kernels.cpp), with kBlockRows and kBlockPanels that fit into its registers.

ALWAYS_INLINE Lanes activated(Lanes x, float slope) {
  const Lanes low = x * slope;
  return x > low ? x : low;  // slope 1: x itself; 0: the positive part
}

// a0 b0 a1 b1 ..
ALWAYS_INLINE void store_in_turn(float *to, Lanes a, Lanes b) {
  Whole low, high;
  for (int32_t i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  store(to, __builtin_shuffle(a, b, low));
  store(to + kLanes, __builtin_shuffle(a, b, high));
}

// The depthwise sums of kCount neighbours of a row, or without a filter their greatest values. Of taps left..right-1 and
// top..bottom-1 none is beyond the edge.
template <int64_t kCount>
ALWAYS_INLINE void depthwise_pixels(const ConvolutionTask &task, const float *in, int64_t y, int64_t x, int64_t top,
                                    int64_t bottom, int64_t left, int64_t right, const int64_t kernel,
                                    const int64_t stride, const bool pools, float *out, int64_t out_step) {
  const int64_t channels = task.channels, step = task.step, pad = kernel / 2;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t first = std::min(c, channels - kLanes);
    Lanes sum[kCount];
    for (int64_t p = 0; p < kCount; ++p) {
      sum[p] = pools ? Lanes{} - std::numeric_limits<float>::infinity() : load(task.filter_bias + first);
    }
    for (int64_t i = top; i < bottom; ++i) {
      const float *from = in + ((y * stride + i - pad) * task.width + x * stride - pad) * step + first;
      const float *filter = task.filter + i * kernel * channels + first;
      for (int64_t j = left; j < right; ++j) {
        const Lanes weight = pools ? Lanes{} : load(filter + j * channels);
        for (int64_t p = 0; p < kCount; ++p) {
          const Lanes own = load(from + (j + p * stride) * step);
          if (pools) {
            sum[p] = ((own > sum[p]) | (own != own)) ? own : sum[p];  // what is not a number stays so
          } else {
            sum[p] += weight * own;
          }
        }
      }
    }
    for (int64_t p = 0; p < kCount; ++p) {
      store(out + p * out_step + first, activated(sum[p], task.filter_slope));
    }
  }
}

// Row y of the depthwise convolution of the map `in`. Kernel and stride are known where this is inlined, so that
// neighbours share what they read.
ALWAYS_INLINE void depthwise_row(const ConvolutionTask &task, const float *in, int64_t y, float *out, int64_t out_step,
                                 const int64_t kernel, const int64_t stride, const bool pools = false) {
  const int64_t kCount = 6, pad = kernel / 2, top = std::max<int64_t>(0, pad - y * stride);
  const int64_t bottom = std::min(kernel, task.height + pad - y * stride);
  for (int64_t x = 0; x < task.out_width;) {
    const int64_t left = pad - x * stride, right = task.width + pad - x * stride;
    if (left <= 0 && (kCount - 1) * stride + kernel <= right && x + kCount <= task.out_width) {
      depthwise_pixels<kCount>(task, in, y, x, top, bottom, 0, kernel, kernel, stride, pools, out + x * out_step,
                               out_step);
      x += kCount;
    } else {
      depthwise_pixels<1>(task, in, y, x, top, bottom, std::max<int64_t>(0, left), std::min(kernel, right), kernel,
                          stride, pools, out + x * out_step, out_step);
      ++x;
    }
  }
}

void depthwise(const ConvolutionTask &task, const float *in, int64_t y, float *out, int64_t out_step) {
  if (!task.filter) return depthwise_row(task, in, y, out, out_step, 3, 2, true);
  if (task.kernel == 3 && task.stride == 1) return depthwise_row(task, in, y, out, out_step, 3, 1);
  if (task.kernel == 5 && task.stride == 1) return depthwise_row(task, in, y, out, out_step, 5, 1);
  depthwise_row(task, in, y, out, out_step, task.kernel, task.stride);
}

// What a product reads and writes, from the first of its pixels on.
struct Operands {
  const float *x, *added, *passed;
  float *out;
  int64_t inputs, step, added_step, passed_step, out_step;
};

// The bits of a word, such as a float's.
template <class To, class From>
ALWAYS_INLINE To as(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// sum + a c + b d, where the word x holds the bfloat16 a and b, and each word of `weight` c and d.
ALWAYS_INLINE Lanes with_pairs(Lanes sum, float x, Lanes weight) {
#ifdef DOT_BFLOAT16
  return as<Lanes>(_mm512_dpbf16_ps(as<__m512>(sum), as<__m512bh>(_mm512_set1_ps(x)), as<__m512bh>(weight)));
#else
  const uint32_t both = as<uint32_t>(x);
  const Bits weights = as<Bits>(weight);
  return sum + as<float>(both << 16) * as<Lanes>(weights << 16) +
         as<float>(both & 0xffff0000) * as<Lanes>(weights & 0xffff0000);
#endif
}

// The inputs of `count` pixels as bfloat16, two of them in a word; beside the last one of an odd number lies a zero.
void paired(const Operands &at, int64_t count, float *pairs) {
  const int64_t words = (at.inputs + 1) / 2;
  for (int64_t p = 0; p < count; ++p) {
    const float *from = at.x + p * at.step;
    BFloat16 *to = reinterpret_cast<BFloat16 *>(pairs + p * words);
    if (at.inputs % 2) to[at.inputs] = 0.0f;
    for (int64_t c = 0; c < at.inputs; c += kLanes) {
      const int64_t first = std::min(c, at.inputs - kLanes);
#ifdef DOT_BFLOAT16
      const auto halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + first));
      std::memcpy(to + first, &halves, sizeof halves);
#else
      store(to + first, load(from + first));
#endif
    }
  }
}

// Stores the channels of a pixel from `channel` on, whose products and bias are `found`.
ALWAYS_INLINE void finish(const Product &task, const Operands &at, int64_t pixel, int64_t channel, Lanes found) {
  if (at.added) found += load(at.added + pixel * at.added_step + channel);
  found = activated(found, task.slope);
  if (at.passed) {
    store_in_turn(at.out + pixel * at.out_step + 2 * channel, load(at.passed + pixel * at.passed_step + channel), found);
  } else {
    store(at.out + pixel * at.out_step + channel, found);
  }
}

// kPanels panels of weights times kBlockRows pixels; a panel makes the channels from `first` on. If kHalf, inputs and
// weights are words of two bfloat16.
template <bool kHalf, int64_t kPanels>
ALWAYS_INLINE void block_of_products(const Product &task, const Operands &at, const int64_t *pixel,
                                     const float *weights, const int64_t *first) {
  const int64_t parts = kPanel / kLanes, inputs = at.inputs;
  const float *x[kBlockRows];
  Lanes sum[kBlockRows][kPanels][parts];
  for (int64_t r = 0; r < kBlockRows; ++r) x[r] = at.x + pixel[r] * at.step;
  for (int64_t v = 0; v < kPanels; ++v) {
    for (int64_t i = 0; i < parts; ++i) {
      const Lanes bias = load(task.bias + first[v] + i * kLanes);
      for (int64_t r = 0; r < kBlockRows; ++r) sum[r][v][i] = bias;
    }
  }
  for (int64_t k = 0; k < inputs; ++k) {
    Lanes weight[kPanels][parts];
    for (int64_t v = 0; v < kPanels; ++v) {
      for (int64_t i = 0; i < parts; ++i) {
        weight[v][i] = load(weights + (v * inputs + k) * kPanel + i * kLanes);
      }
    }
    for (int64_t r = 0; r < kBlockRows; ++r) {
      for (int64_t v = 0; v < kPanels; ++v) {
        for (int64_t i = 0; i < parts; ++i) {
          Lanes &own = sum[r][v][i];
          own = kHalf ? with_pairs(own, x[r][k], weight[v][i]) : own + x[r][k] * weight[v][i];
        }
      }
    }
  }
  for (int64_t r = 0; r < kBlockRows; ++r) {
    for (int64_t v = 0; v < kPanels; ++v) {
      for (int64_t i = 0; i < parts; ++i) {
        finish(task, at, pixel[r], first[v] + i * kLanes, sum[r][v][i]);
      }
    }
  }
}

// kPanels panels for `count` pixels. The last block of pixels may overlap the one before.
template <bool kHalf, int64_t kPanels>
ALWAYS_INLINE void column_of_products(const Product &task, const Operands &at, int64_t count, int64_t panel) {
  int64_t first[kPanels], pixel[kBlockRows];
  for (int64_t v = 0; v < kPanels; ++v) first[v] = std::min((panel + v) * kPanel, task.outputs - kPanel);
  for (int64_t block = 0; block < count; block += kBlockRows) {
    const int64_t start = std::min(block, std::max<int64_t>(0, count - kBlockRows));
    for (int64_t r = 0; r < kBlockRows; ++r) pixel[r] = std::min(start + r, count - 1);
    block_of_products<kHalf, kPanels>(task, at, pixel, task.weights + panel * at.inputs * kPanel, first);
  }
}

template <bool kHalf>
void all_products(const Product &task, const Operands &at, int64_t count) {
  const int64_t panels = (task.outputs + kPanel - 1) / kPanel, two = std::min<int64_t>(2, kBlockPanels);
  int64_t panel = 0;
  for (; panel + kBlockPanels <= panels; panel += kBlockPanels) {
    column_of_products<kHalf, kBlockPanels>(task, at, count, panel);
  }
  for (; panel + two <= panels; panel += two) column_of_products<kHalf, two>(task, at, count, panel);
  for (; panel < panels; ++panel) column_of_products<kHalf, 1>(task, at, count, panel);
}

#ifdef TILES
const int64_t kTileSide = 16;  // pixels, outputs and words of inputs of a tile (Intel AMX)

// The registers' numbers must be known when compiling. Tiles 0, 1, 2 are sums, 3 and 4 inputs and weights, 5 and 6 the
// same of the last inputs, fewer than a tile has. A panel of weights is laid out as a tile is.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64};
  uint8_t rows[16] = {kTileSide, kTileSide, kTileSide, kTileSide, kTileSide};

  explicit TileShapes(int64_t last) {
    bytes[5] = 4 * last, rows[5] = last ? kTileSide : 0;
    bytes[6] = last ? 64 : 0, rows[6] = last;
  }
};

// kPanels panels for `count` pixels, a tile at least.
template <int64_t kPanels>
ALWAYS_INLINE void column_of_tiles(const Product &task, const Operands &at, int64_t count, int64_t panel) {
  const int64_t words = at.inputs, whole = words - words % kTileSide, step = 4 * at.step;
  alignas(64) float sums[3][kTileSide][kTileSide];
  for (int64_t block = 0; block < count; block += kTileSide) {
    const int64_t start = std::min(block, count - kTileSide);
    const float *x = at.x + start * at.step, *weights = task.weights + panel * words * kPanel;
    _tile_zero(0);
    if (kPanels > 1) _tile_zero(1);
    if (kPanels > 2) _tile_zero(2);
#define MULTIPLY(inputs, panels)                                                \
  _tile_loadd(inputs, x + k, step);                                             \
  _tile_loadd(panels, weights + k * kPanel, 64);                                \
  _tile_dpbf16ps(0, inputs, panels);                                            \
  if (kPanels > 1) _tile_loadd(panels, weights + (words + k) * kPanel, 64);     \
  if (kPanels > 1) _tile_dpbf16ps(1, inputs, panels);                           \
  if (kPanels > 2) _tile_loadd(panels, weights + (2 * words + k) * kPanel, 64); \
  if (kPanels > 2) _tile_dpbf16ps(2, inputs, panels);
    int64_t k = 0;
    for (; k < whole; k += kTileSide) {
      MULTIPLY(3, 4)
    }
    if (k < words) {
      MULTIPLY(5, 6)
    }
#undef MULTIPLY
    _tile_stored(0, sums[0], 64);
    if (kPanels > 1) _tile_stored(1, sums[1], 64);
    if (kPanels > 2) _tile_stored(2, sums[2], 64);
    for (int64_t v = 0; v < kPanels; ++v) {
      const int64_t first = std::min((panel + v) * kPanel, task.outputs - kPanel);
      const Lanes bias = load(task.bias + first);
      for (int64_t r = 0; r < kTileSide; ++r) finish(task, at, start + r, first, load(sums[v][r]) + bias);
    }
  }
}

void all_tiles(const Product &task, const Operands &at, int64_t count) {
  const TileShapes shapes(at.inputs % kTileSide);
  _tile_loadconfig(&shapes);
  const int64_t panels = (task.outputs + kPanel - 1) / kPanel;
  int64_t panel = 0;
  for (; panel + 3 <= panels; panel += 3) column_of_tiles<3>(task, at, count, panel);
  if (panel + 2 <= panels) column_of_tiles<2>(task, at, count, panel), panel += 2;
  if (panel < panels) column_of_tiles<1>(task, at, count, panel);
  _tile_release();
}
#endif

void product(const Product &task, Operands at, int64_t count, float *pairs) {
  if (!task.half) return all_products<false>(task, at, count);
  paired(at, count, pairs);
  at.x = pairs;
  at.inputs = at.step = (at.inputs + 1) / 2;
#ifdef TILES
  if (count >= kTileSide) return all_tiles(task, at, count);
#endif
  all_products<true>(task, at, count);
}

// Rows begin..end-1 of the result of a map. What lies between is at `scratch`, a product's inputs as bfloat16 at `pairs`.
void convolution(const ConvolutionTask &task, int64_t frame, int64_t begin, int64_t end, float *scratch, float *pairs) {
  const int64_t first = (frame * task.out_height + begin) * task.out_width, count = (end - begin) * task.out_width;
  const float *in = task.x + frame * task.height * task.width * task.step;
  float *out = task.out + first * task.out_step;
  Operands at = {task.x + first * task.step, nullptr, nullptr, nullptr, task.channels, task.step, 0, 0, 0};
  if (task.kernel > 1) {
    at.x = at.out = task.products ? scratch : out;
    at.step = task.products ? task.channels : task.out_step;
    for (int64_t y = begin; y < end; ++y) {
      depthwise(task, in, y, at.out + (y - begin) * task.out_width * at.step, at.step);
    }
    scratch += count * task.channels;
  } else if (!task.products) {
    for (int64_t p = 0; p < count; ++p) std::copy_n(at.x + p * at.step, at.inputs, out + p * task.out_step);
  }
  for (int64_t i = 0; i < task.products; ++i) {
    const Product &own = task.product[i];
    const bool last = i == task.products - 1;
    at.added = own.added ? own.added + first * own.added_step : nullptr;
    at.added_step = own.added_step;
    at.passed = last && task.passed ? task.passed + first * task.passed_step : nullptr;
    at.passed_step = task.passed_step;
    at.out = last ? out : scratch;
    at.out_step = last ? task.out_step : own.outputs;
    product(own, at, count, pairs);
    at.x = at.out;
    at.inputs = at.step = own.outputs;
    scratch += count * own.outputs;
  }
}
