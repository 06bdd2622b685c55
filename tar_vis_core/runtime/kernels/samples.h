// Bilinear samples of a map whose channels lie side by side, float32: sums of four pixels, all channels at a time.
//
// Included once for each kind of processor (kernels.cpp).

// Points begin..end-1; the last channels may be computed twice, as in convolution.h.
void sample_points(const SampleTask &task, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    // beyond the centres of the outermost pixels the map goes on as there; what is not a number is at the first
    const float x = std::min(std::max(0.0f, task.places[2 * p] * task.width - 0.5f), task.width - 1.0f);
    const float y = std::min(std::max(0.0f, task.places[2 * p + 1] * task.height - 0.5f), task.height - 1.0f);
    const int64_t left = int64_t(x), top = int64_t(y);
    const int64_t right = std::min(left + 1, task.width - 1), bottom = std::min(top + 1, task.height - 1);
    const float across = x - left, down = y - top;
    const float *a = task.map + (top * task.width + left) * task.step;
    const float *b = task.map + (top * task.width + right) * task.step;
    const float *c = task.map + (bottom * task.width + left) * task.step;
    const float *d = task.map + (bottom * task.width + right) * task.step;
    for (int64_t i = 0; i < task.channels; i += kLanes) {
      const int64_t k = std::min(i, task.channels - kLanes);
      const Lanes above = load(a + k) + across * (load(b + k) - load(a + k));
      const Lanes below = load(c + k) + across * (load(d + k) - load(c + k));
      Lanes found = above + down * (below - above);
      if (task.added) found += load(task.added + p * task.added_step + k);
      store(task.out + p * task.out_step + k, found);
    }
  }
}
