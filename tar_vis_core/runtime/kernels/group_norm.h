// Group norm (Wu and He 2018) of maps with their channels last, float32 or bfloat16.
//
// PyTorch's own takes the variance as a difference of two large numbers there, and loses three digits where a group
// varies little around its mean. Here every channel is first moved by its first value.

// Included once for each kind of processor (kernels.cpp).

// Adds the sums of (x - shift) and of its square over some rows, channel by channel.
template <class T>
void add_sums(const T *x, const float *shift, int64_t rows, int64_t channels, float *part, double *sum) {
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

template <class T>
void scale_rows(const T *x, const float *scale, const float *shift, int64_t rows, int64_t channels, T *out) {
  for (int64_t r = 0; r < rows; ++r, x += channels, out += channels) {
    for (int64_t c = 0; c < channels; ++c) out[c] = x[c] * scale[c] + shift[c];
  }
}
