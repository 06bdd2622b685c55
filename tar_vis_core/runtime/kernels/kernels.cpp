// The kernels as plain C functions, each compiled for several kinds of processor; the call chooses this one's.
//
// They share OpenMP's threads with torch, which has loaded the same runtime.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "seats.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

const int64_t kPanel = 16;                 // outputs of a convolution whose weights lie together
const int64_t kWidest = 64;                // channels of a head whose number is known when compiling
const int64_t kSamples = 64;               // of a query and head of deformable attention at most
const int64_t kTile = 256, kQueries = 128;  // keys and queries that attention takes at once
const int64_t kScratch = kQueries * kTile + kTile * kWidest;
const int64_t kPixels = 96;                // of a convolution's result that are computed at once, about
const int64_t kBins = 8;                   // of a detector's distance: 0..7 strides
const float kMargin = 0.15f;               // of a box's sides (models/proposals.py)
const int64_t kAlone = 1 << 20;            // multiplications that a thread does sooner than it could wake another
const int64_t kRows = 64;                  // rows of a group norm whose sums are float32, and then add up in double

// The upper half of a float.
struct BFloat16 {
  uint16_t upper;

  BFloat16() = default;
  BFloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    upper = uint16_t((x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16);
  }
  operator float() const {
    const uint32_t bits = uint32_t(upper) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
};

// T is float or BFloat16.
template <class T>
struct AttentionTask {
  const T *query, *key, *value;  // (frames, queries or keys, heads, width)
  const uint8_t *keep;           // (frames, queries, keys), or null: all
  T *out;                        // as query
  int64_t queries, keys, heads;
};

template <class T>
struct DeformableTask {
  const T *offsets;        // (frames, queries, heads, levels, points, 2) as x, y in cells of their level
  const T *logits;         // (frames, queries, heads, levels, points)
  const float *reference;  // (queries, 2) as x, y in 0..1
  const int64_t *shapes;   // (levels, 2) as height, width
  T *out;                  // (frames, queries, heads, width)
  // the steps are from a query's to the next one's
  int64_t queries, heads, levels, points, width, offset_step, logit_step;
};

struct Product {
  const float *weights;         // (outputs / 16, inputs, 16) with the last sixteen whole; if it is `half`, bfloat16 as
                                // (outputs / 16, inputs / 2, 16, 2), where an odd number of inputs has a zero at its end
  const float *bias;            // (outputs)
  const float *added;           // a map as the result that is added to it, or null
  int64_t outputs, added_step;
  float slope;                  // what negative values are multiplied by at last
  int32_t half;                 // multiplies bfloat16, with sums in float32
};

// Maps are (frames, height, width, channels), their `step` the floats from a pixel to the next.
struct ConvolutionTask {
  const float *x, *filter, *filter_bias;  // a depthwise (kernel, kernel, channels); null: with kernel 1 only products,
                                          // with kernel 3 and stride 2 the greatest values
  const Product *product;                 // one after the other
  const float *passed;                    // a map whose channels come in turn with those of the result, or null
  float *out;
  int64_t height, width, channels, step, kernel, stride, out_height, out_width, products, passed_step, out_step;
  float filter_slope;
};

struct SampleTask {
  const float *map;            // (height, width, channels), `step` floats from pixel to pixel
  const float *places;         // (points, 2) as x, y in 0..1
  const float *added;          // (points, channels), added to the samples, or null
  float *out;                  // (points, channels)
  int64_t height, width, channels, step, added_step, out_step;
};

template <class T>
struct NormTask {
  const T *x;                  // (rows, channels)
  const float *weight, *bias;  // (channels)
  const float *added;          // (added_rows, channels), added over and over for `sum`, or null
  T *out, *sum;                // (rows, channels)
  int64_t channels, added_rows;
  float eps;
};

struct CellsTask {
  const float *embeddings, *features;  // (frames, queries, channels), (frames, height, width, channels)
  const float *boxes;                  // (frames, queries, 4) left, top, right, bottom in 0..1, or null: all cells
  uint8_t *keep;                       // (frames, queries, height, width)
  int64_t queries, height, width, channels;
};

struct DrawTask {
  const float *grids;     // (masks, points, points), `step` floats from one to the next
  const float *boxes;     // (masks, 4) left, top, right, bottom in 0..1
  const float *products;  // (masks, height, width)
  float *out;             // as products
  int64_t points, step, height, width;
};

// The resize of one axis, of which the outputs begin..end-1 are wanted.
struct Axis {
  const float *weights;         // (outputs, inputs)
  const int64_t *first, *last;  // (outputs) the inputs that each reads
  int64_t inputs, begin, end;
};

// A kernel of maps, as Python asks for it and writes it down (tapes.py).
struct Call {
  int64_t kind;  // of kCalls
  float *pointers[6];
  int64_t sizes[12];
  float slope;
};

struct DetectorLevel {
  const float *predictions;  // (frames, height, width, classes + 4 * kBins), `step` floats from cell to cell
  const float *content;      // (frames, height, width, channels), `content_step` floats from cell to cell
  int64_t height, width, stride, step, content_step;
};

struct ProposalTask {
  const DetectorLevel *level;          // the finest first
  float *boxes, *logits, *content;     // (frames, queries, 4 or classes or channels); what is not written stays
  int64_t levels, classes, channels, candidates, queries;
  float same, other;                   // the shared part of two areas' sum above which they are the same object
};

namespace portable {
const int64_t kLanes = 4;                       // floats of a register: wider vectors would be split badly
const int64_t kBlockRows = 4, kBlockPanels = 1;  // of a product, held in registers
#include "lanes.h"
#include "attention.h"
#include "convolution.h"
#include "samples.h"
#include "deformable.h"
#include "group_norm.h"
#include "decoder.h"
#include "proposals.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
const int64_t kLanes = 8, kBlockRows = 6, kBlockPanels = 1;
#include "lanes.h"
#include "attention.h"
#include "convolution.h"
#include "samples.h"
#include "deformable.h"
#include "group_norm.h"
#include "decoder.h"
#include "proposals.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace avx512 {
const int64_t kLanes = 16, kBlockRows = 6, kBlockPanels = 4;
#include "lanes.h"
#include "attention.h"
#include "convolution.h"
#include "samples.h"
#include "deformable.h"
#include "group_norm.h"
#include "decoder.h"
#include "proposals.h"
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")
namespace avx512_bf16 {
const int64_t kLanes = 16, kBlockRows = 6, kBlockPanels = 4;
#define DOT_BFLOAT16
#include "lanes.h"
#include "convolution.h"
#undef DOT_BFLOAT16
}  // namespace avx512_bf16
#pragma GCC pop_options

#if __GNUC__ >= 12 && defined(__linux__)
#define HAS_TILES
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
namespace tiles {
const int64_t kLanes = 16, kBlockRows = 6, kBlockPanels = 4;
#define DOT_BFLOAT16
#define TILES
#include "lanes.h"
#include "convolution.h"
#undef TILES
#undef DOT_BFLOAT16
}  // namespace tiles
#pragma GCC pop_options
#endif

// Whether the processor multiplies in tiles, and Linux lets this process use them.
bool has_tiles() {
#ifdef HAS_TILES
  const int64_t kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and what it is asked for (arch_prctl)
  static const bool allowed = __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") &&
                              syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}

// Whether the processor multiplies bfloat16 faster than float32. Intel's instruction for vectors is slower.
bool fast_bfloat16() {
  return has_tiles() || (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd"));
}

#ifndef HAS_TILES
namespace tiles = avx512_bf16;
#endif
#define CHOSEN_CONVOLUTION                                           \
  (has_tiles()                             ? tiles::convolution       \
   : __builtin_cpu_supports("avx512bf16") ? avx512_bf16::convolution \
                                          : CHOSEN(convolution))
#define CHOSEN(name)                                    \
  (__builtin_cpu_supports("x86-64-v4")   ? avx512::name \
   : __builtin_cpu_supports("x86-64-v3") ? avx2::name   \
                                         : portable::name)
#else
bool fast_bfloat16() { return false; }
#define CHOSEN(name) portable::name
#define CHOSEN_CONVOLUTION portable::convolution
#endif

int64_t threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// The pointers and sizes of a call for a ConvolutionTask come in the order of what it holds, frames the first size.
void convolve_maps(const Call &call) {
  const auto run = CHOSEN_CONVOLUTION;
  float *const *p = call.pointers;
  const int64_t *n = call.sizes, frames = n[0], channels = n[3], kernel = n[5], out_height = n[7], out_width = n[8];
  const int64_t products = n[9];
  const Product *product = reinterpret_cast<const Product *>(p[3]);
  const ConvolutionTask task = {p[0], p[1], p[2], product, p[4], p[5], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8],
                                n[9], n[10], n[11], call.slope};
  // parts of about kPixels pixels, as many for each thread
  const int64_t round = kPixels * threads(), rounds = (frames * out_height * out_width + round - 1) / round;
  const int64_t parts = std::max<int64_t>(1, std::min(out_height, rounds * threads() / frames));
  int64_t between = kernel > 1 && products ? channels : 0, work = kernel * kernel * channels;
  if (kernel == 1 && !products) work = 8 * channels;  // a copy waits for memory
  for (int64_t i = 0; i + 1 < products; ++i) between += product[i].outputs;
  int64_t pairs = 0;  // words of a pixel
  for (int64_t i = 0; i < products; ++i) {
    const int64_t inputs = i ? product[i - 1].outputs : channels;
    work += inputs * product[i].outputs;
    if (product[i].half) pairs = std::max(pairs, (inputs + 1) / 2);
  }
#pragma omp parallel if (frames * out_height * out_width * work > kAlone)
  {
    const int64_t pixels = (out_height + parts - 1) / parts * out_width;
    std::vector<float> scratch(pixels * (between + pairs));
#pragma omp for schedule(static)
    for (int64_t part = 0; part < frames * parts; ++part) {
      const int64_t own = part % parts;
      run(task, part / parts, own * out_height / parts, (own + 1) * out_height / parts, scratch.data(),
          scratch.data() + pixels * between);
    }
  }
}

// The same for a SampleTask; all frames are sampled at the same places, whose number is the second size.
void sample_maps(const Call &call) {
  const auto run = CHOSEN(sample_points);
  const float *map = call.pointers[0], *added = call.pointers[2];
  const float *places = call.pointers[1] ? call.pointers[1] : call.pointers[4];  // constant, or of grid_maps
  float *out = call.pointers[3];
  const int64_t *n = call.sizes, frames = n[0], points = n[1], height = n[2], width = n[3], channels = n[4];
  const int64_t step = n[5], added_step = n[6], out_step = n[7], parts = threads();
#pragma omp parallel for schedule(static) if (8 * frames * points * channels > kAlone)
  for (int64_t part = 0; part < frames * parts; ++part) {
    const int64_t frame = part / parts, own = part % parts, first = frame * points;
    run({map + frame * height * width * step, places, added ? added + first * added_step : nullptr,
         out + first * out_step, height, width, channels, step, added_step, out_step},
        own * points / parts, (own + 1) * points / parts);
  }
}

template <class T>
void attend_all(const AttentionTask<T> &task, int64_t frames, int64_t width) {
  const auto run = CHOSEN(attention<T>);
  // as few chunks of queries as give every thread work: each looks at all keys
  const int64_t queries = task.queries, heads = task.heads;
  const int64_t wanted = 2 * threads() / (frames * heads), most = (queries + kQueries - 1) / kQueries;
  const int64_t chunks = std::min(std::max(wanted, most), queries), size = (queries + chunks - 1) / chunks;
#pragma omp parallel if (2 * frames * queries * task.keys * heads * width > kAlone)
  {
    std::vector<float> scratch(kScratch);
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < frames * heads * chunks; ++part) {
      const int64_t chunk = part % chunks, head = part / chunks % heads, frame = part / chunks / heads;
      run(task, frame, head, chunk * size, std::min(queries, (chunk + 1) * size), scratch.data(), width);
    }
  }
}

void attend_maps(const Call &call) {
  float *const *p = call.pointers;
  const int64_t *n = call.sizes;
  attend_all<float>({p[0], p[1], p[2], reinterpret_cast<const uint8_t *>(p[3]), p[4], n[1], n[2], n[3]}, n[0], n[4]);
}

template <class T>
void norm_all(const NormTask<T> &task, int64_t rows) {
  const auto run = CHOSEN(norm_rows<T>);
  const int64_t blocks = (rows + kRows - 1) / kRows;
#pragma omp parallel for schedule(static) if (8 * rows * task.channels > kAlone)
  for (int64_t b = 0; b < blocks; ++b) run(task, b * kRows, std::min(rows, (b + 1) * kRows));
}

void norm_maps(const Call &call) {
  float *const *p = call.pointers;
  norm_all<float>({p[0], p[1], p[2], p[3], p[4], p[5], call.sizes[1], call.sizes[0], call.slope}, call.sizes[0]);
}

void choose_cells(const Call &call) {
  const auto run = CHOSEN(attended_cells);
  float *const *p = call.pointers;
  const int64_t *n = call.sizes, rows = n[0] * n[1];
  const CellsTask task = {p[0], p[1], p[2], reinterpret_cast<uint8_t *>(p[3]), n[1], n[2], n[3], n[4]};
#pragma omp parallel for schedule(dynamic, 8) if (rows * n[2] * n[3] * n[4] > kAlone)
  for (int64_t row = 0; row < rows; ++row) run(task, row);
}

void grid_maps(const Call &call) {
  const int64_t points = call.sizes[1];
  for (int64_t k = 0; k < call.sizes[0]; ++k) {
    CHOSEN(grid_places)(call.pointers[0] + 4 * k, points, call.pointers[1] + 2 * k * points * points);
  }
}

void draw_masks(const Call &call) {
  const auto run = CHOSEN(draw_mask);
  float *const *p = call.pointers;
  const int64_t *n = call.sizes;
#pragma omp parallel for schedule(static) if (8 * n[0] * n[3] * n[4] > kAlone)
  for (int64_t mask = 0; mask < n[0]; ++mask) run({p[0], p[1], p[2], p[3], n[1], n[2], n[3], n[4]}, mask);
}

void (*const kCalls[])(const Call &) = {convolve_maps, sample_maps,  attend_maps, norm_maps,
                                        choose_cells,  draw_masks, grid_maps};

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

template <class T>
void group_norm(const T *x, const float *weight, const float *bias, T *out, int64_t frames, int64_t rows,
                int64_t channels, int64_t groups, float eps) {
  const auto add = CHOSEN(add_sums<T>);
  const auto scale_block = CHOSEN(scale_rows<T>);
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t frame = 0; frame < frames; ++frame, x += rows * channels, out += rows * channels) {
    const std::vector<float> first(x, x + channels);
    std::vector<double> sum(2 * channels, 0.0);
    std::vector<float> scale(channels), shift(channels);
#pragma omp parallel
    {
      std::vector<double> own(2 * channels, 0.0);
      std::vector<float> part(2 * channels);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        add(x + b * kRows * channels, first.data(), std::min(kRows, rows - b * kRows), channels, part.data(),
            own.data());
      }
#pragma omp critical
      for (int64_t c = 0; c < 2 * channels; ++c) sum[c] += own[c];
#pragma omp barrier
#pragma omp single
      finish(sum.data(), first.data(), weight, bias, rows, channels, groups, eps, scale.data(), shift.data());
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        scale_block(x + b * kRows * channels, scale.data(), shift.data(), std::min(kRows, rows - b * kRows), channels,
                    out + b * kRows * channels);
      }
    }
  }
}

template <class T>
void deform(const T *value, T *scratch, int64_t frames, int64_t cells, const DeformableTask<T> &task) {
  const auto run = CHOSEN(deformable<T>);
  const int64_t queries = task.queries, heads = task.heads, width = task.width;
  // a head's cells side by side, so that a query's samples lie near each other
#pragma omp parallel for schedule(static)
  for (int64_t cell = 0; cell < frames * cells; ++cell) {
    const int64_t frame = cell / cells;
    for (int64_t head = 0; head < heads; ++head) {
      std::memcpy(scratch + ((frame * heads + head) * cells + cell % cells) * width,
                  value + (cell * heads + head) * width, width * sizeof(T));
    }
  }
  const int64_t chunk = 128, chunks = (queries + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic)
  for (int64_t part = 0; part < frames * heads * chunks; ++part) {
    const int64_t begin = part % chunks * chunk, head = part / chunks % heads, frame = part / chunks / heads;
    run(task, scratch + (frame * heads + head) * cells * width, frame, head, begin, std::min(queries, begin + chunk));
  }
}

}  // namespace

extern "C" {

// query, key, value and out (frames, queries or keys, heads, width), keep (frames, queries, keys) or null. Width is 16,
// 32 or 64. A query that may attend nothing gets not-a-number. All but keep are bfloat16 if `half`.
void tar_vis_attention(const void *query, const void *key, const void *value, const uint8_t *keep, void *out,
                       int64_t frames, int64_t queries, int64_t keys, int64_t heads, int64_t width, int64_t half) {
  const auto run = [&](auto kind) {
    using T = decltype(kind);
    attend_all<T>({static_cast<const T *>(query), static_cast<const T *>(key), static_cast<const T *>(value), keep,
                   static_cast<T *>(out), queries, keys, heads}, frames, width);
  };
  half ? run(BFloat16()) : run(float());
}

// See seats.h.
int tar_vis_seat_threads(int64_t processors) { return seat_threads(processors); }
void tar_vis_free_thread(const char *load) { free_thread(load); }
void tar_vis_end_helpers() { end_helpers(); }

int tar_vis_fast_bfloat16() { return fast_bfloat16(); }

// See Call.
void tar_vis_calls(const Call *call, int64_t count) {
  for (; count; --count, ++call) kCalls[call->kind](*call);
}

// x (frames, height, row) bytes, mean and std (row), out (frames, padded_height, padded_row).
void tar_vis_normalize(const uint8_t *x, const float *mean, const float *std, float *out, int64_t frames,
                       int64_t height, int64_t row, int64_t padded_height, int64_t padded_row) {
  const auto run = CHOSEN(normalized_row);
#pragma omp parallel for schedule(static) if (8 * frames * height * row > kAlone)
  for (int64_t i = 0; i < frames * padded_height; ++i) {
    const int64_t y = i % padded_height, from = i / padded_height * height + y;
    run(x + from * row, mean, std, y < height ? row : 0, padded_row, out + i * padded_row);
  }
}

// mask (down.end - down.begin, across.end - across.begin); a row of the map is `step` floats long.
void tar_vis_mask(const float *map, int64_t step, const Axis *down, const Axis *across, uint8_t *mask) {
  CHOSEN(resized_mask)(map, step, *down, *across, mask);
}

// See ProposalTask.
void tar_vis_propose(const DetectorLevel *level, float *boxes, float *logits, float *content, int64_t frames,
                     int64_t levels, int64_t classes, int64_t channels, int64_t candidates, int64_t queries, float same,
                     float other) {
  const auto run = CHOSEN(propose);
#pragma omp parallel for schedule(static) if (frames > 1)
  for (int64_t frame = 0; frame < frames; ++frame) {
    run({level, boxes, logits, content, levels, classes, channels, candidates, queries, same, other}, frame);
  }
}

// value (frames, cells, heads, width), the others as in DeformableTask; `scratch` has room for what value holds. All but
// the reference are bfloat16 if `half`.
void tar_vis_deformable(const void *value, const void *offsets, const void *logits, const float *reference,
                        const int64_t *shapes, void *out, void *scratch, int64_t frames, int64_t cells, int64_t queries,
                        int64_t heads, int64_t levels, int64_t points, int64_t width, int64_t offset_step,
                        int64_t logit_step, int64_t half) {
  const auto run = [&](auto kind) {
    using T = decltype(kind);
    deform<T>(static_cast<const T *>(value), static_cast<T *>(scratch), frames, cells,
              {static_cast<const T *>(offsets), static_cast<const T *>(logits), reference, shapes,
               static_cast<T *>(out), queries, heads, levels, points, width, offset_step, logit_step});
  };
  half ? run(BFloat16()) : run(float());
}

// x and out (frames, rows, channels), weight and bias (channels). x and out are bfloat16 if `half`.
void tar_vis_group_norm(const void *x, const float *weight, const float *bias, void *out, int64_t frames, int64_t rows,
                        int64_t channels, int64_t groups, float eps, int64_t half) {
  const auto run = [&](auto kind) {
    using T = decltype(kind);
    group_norm(static_cast<const T *>(x), weight, bias, static_cast<T *>(out), frames, rows, channels, groups, eps);
  };
  half ? run(BFloat16()) : run(float());
}

// x, out and sum (rows, channels) are bfloat16 if `half`; the others as in NormTask.
void tar_vis_layer_norm(const void *x, const float *weight, const float *bias, const float *added, void *out, void *sum,
                        int64_t rows, int64_t channels, int64_t added_rows, float eps, int64_t half) {
  const auto run = [&](auto kind) {
    using T = decltype(kind);
    norm_all<T>({static_cast<const T *>(x), weight, bias, added, static_cast<T *>(out), static_cast<T *>(sum), channels,
                 added_rows, eps}, rows);
  };
  half ? run(BFloat16()) : run(float());
}

}  // extern "C"
