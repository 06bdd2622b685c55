// Scaled dot-product attention with a boolean mask on a CPU: softmax(q k' / sqrt(width)) v for every head.
//
// Masked attention (Mask2Former) blocks most keys of most queries, and in runs, as masks are areas: keys come kLanes
// at a time, and so many that are all blocked cost a query nothing. The softmax is taken as the keys come (Milakov and Gimelshein
// 2018), so that no row of logits leaves the cache. Read and written are float32 or bfloat16, between them is float32.

// Included once for each kind of processor (kernels.cpp).

// Whether any of kLanes keys may be attended; those from `count` on are not there.
ALWAYS_INLINE bool any_kept(const uint8_t *keep, int64_t count) {
  if (count == kLanes) {
    uint32_t words[kLanes / 4], any = 0;
    std::memcpy(words, keep, sizeof words);
    for (uint32_t word : words) any |= word;
    return any;
  }
  return std::any_of(keep, keep + count, [](uint8_t k) { return k != 0; });
}

// Queries begin..end-1 of one head of one frame, kQueries at most; `scratch` holds kScratch floats. `width` is known
// where this is inlined, so that loops over it unroll.
template <class T>
ALWAYS_INLINE void attend(const AttentionTask<T> &task, int64_t frame, int64_t head, int64_t begin, int64_t end,
                          float *scratch, const int64_t width) {
  const int64_t step = task.heads * width, parts = width / kLanes, count = end - begin;
  const int64_t sums = parts > 4 ? 1 : parts > 2 ? 2 : 4;  // one alone would wait for itself
  const float blocked = -std::numeric_limits<float>::infinity(), scale = 1.0f / std::sqrt(float(width));
  const Lanes all_blocked = Lanes{} + blocked;
  const T *keys = task.key + frame * task.keys * step + head * width;
  const T *values = task.value + frame * task.keys * step + head * width;
  float query[kQueries][kWidest], most[kQueries], total[kQueries];
  Lanes sum[kQueries][kWidest / kLanes] = {};
  for (int64_t q = 0; q < count; ++q) {
    const T *from = task.query + (frame * task.queries + begin + q) * step + head * width;
    for (int64_t c = 0; c < width; ++c) query[q][c] = from[c] * scale;
    most[q] = blocked;
    total[q] = 0;
  }
  float *near = scratch + kQueries * kTile;  // a tile's values side by side; a head's rows lie far apart
  for (int64_t tile = 0; tile < task.keys; tile += kTile) {
    const int64_t tile_end = std::min(task.keys, tile + kTile), blocks = (tile_end - tile + kLanes - 1) / kLanes;
    Lanes highest[kQueries];
    uint8_t open[kQueries][kTile / kLanes];
    for (int64_t q = 0; q < count; ++q) highest[q] = all_blocked;
    for (int64_t k = tile; k < tile_end; ++k) {
      for (int64_t c = 0; c < width; c += kLanes) store(near + (k - tile) * width + c, load(values + k * step + c));
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = tile + b * kLanes, there = std::min(kLanes, tile_end - first);
      float turned[kWidest][kLanes];
      if (there < kLanes) std::memset(turned, 0, sizeof turned);
      for (int64_t k = 0; k < there; ++k) {
        for (int64_t c = 0; c < width; ++c) turned[c][k] = keys[(first + k) * step + c];
      }
      for (int64_t q = 0; q < count; ++q) {
        const uint8_t *keep =
            task.keep ? task.keep + (frame * task.queries + begin + q) * task.keys + first : nullptr;
        open[q][b] = !keep || any_kept(keep, there);
        if (!open[q][b]) continue;
        Lanes dot[4] = {};
        for (int64_t c = 0; c < width; c += 4) {
          for (int64_t i = 0; i < 4; ++i) dot[i] += query[q][c + i] * load(turned[c + i]);
        }
        Lanes logits = (dot[0] + dot[1]) + (dot[2] + dot[3]);
        if (keep || there < kLanes) {
          Whole allowed = {};
          if (!keep) {
            for (int64_t k = 0; k < there; ++k) allowed[k] = 1;
          } else if (there == kLanes) {
            Bytes bytes;
            std::memcpy(&bytes, keep, sizeof bytes);
            allowed = __builtin_convertvector(bytes, Whole);
          } else {
            for (int64_t k = 0; k < there; ++k) allowed[k] = keep[k];
          }
          logits = allowed != 0 ? logits : all_blocked;
        }
        store(scratch + q * kTile + b * kLanes, logits);
        highest[q] = logits > highest[q] ? logits : highest[q];
      }
    }
    for (int64_t q = 0; q < count; ++q) {
      const float high = greatest_of(highest[q]);
      if (high == blocked) continue;
      if (high > most[q]) {
        const float fade = most[q] == blocked ? 0.0f : std::exp(most[q] - high);
        for (int64_t i = 0; i < parts; ++i) sum[q][i] *= fade;
        total[q] *= fade;
        most[q] = high;
      }
      Lanes own[sums][kWidest / kLanes] = {}, weight = {};
      for (int64_t b = 0; b < blocks; ++b) {
        if (!open[q][b]) continue;
        const int64_t first = tile + b * kLanes, there = std::min(kLanes, tile_end - first);
        const float *value = near + b * kLanes * width;
        const Lanes shares = exp_of(load(scratch + q * kTile + b * kLanes) - most[q]);
        weight += shares;
        if (there == kLanes) {
          for (int64_t k = 0; k < kLanes; k += sums) {
            for (int64_t j = 0; j < sums; ++j) {
              for (int64_t i = 0; i < parts; ++i) {
                own[j][i] += shares[k + j] * load(value + (k + j) * width + i * kLanes);
              }
            }
          }
        } else {
          for (int64_t k = 0; k < there; ++k) {
            for (int64_t i = 0; i < parts; ++i) own[0][i] += shares[k] * load(value + k * width + i * kLanes);
          }
        }
      }
      for (int64_t j = 0; j < sums; ++j) {
        for (int64_t i = 0; i < parts; ++i) sum[q][i] += own[j][i];
      }
      total[q] += sum_of(weight);
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    T *out = task.out + (frame * task.queries + begin + q) * step + head * width;
    for (int64_t i = 0; i < parts; ++i) store(out + i * kLanes, sum[q][i] / total[q]);
  }
}

template <class T>
void attention(const AttentionTask<T> &task, int64_t frame, int64_t head, int64_t begin, int64_t end, float *scratch,
               int64_t width) {
  if (width == 16) attend(task, frame, head, begin, end, scratch, 16);
  if (width == 32) attend(task, frame, head, begin, end, scratch, 32);
  if (width == 64) attend(task, frame, head, begin, end, scratch, 64);
}
