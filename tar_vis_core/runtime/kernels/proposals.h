// The likeliest objects of a detector's predictions, as models/proposals.py explains.
//
// Included once for each kind of processor (kernels.cpp).

// The greatest of `count` logits; what is not a number is greater than all.
float greatest_logit(const float *logits, int64_t count) {
  float most = logits[0];
  int64_t c = 0;
  if (count >= kLanes) {
    Lanes lanes = load(logits);
    for (c = kLanes; c + kLanes <= count; c += kLanes) {
      const Lanes own = load(logits + c);
      lanes = ((own > lanes) | (own != own)) ? own : lanes;
    }
    for (int64_t i = 0; i < kLanes; ++i) most = lanes[i] > most || lanes[i] != lanes[i] ? lanes[i] : most;
  }
  for (; c < count; ++c) most = logits[c] > most || logits[c] != logits[c] ? logits[c] : most;
  return most == most ? most : std::numeric_limits<float>::infinity();
}

// The mean distance, in strides, that a cell's kBins logits of a side say.
float distance_of(const float *logits) {
  const float most = *std::max_element(logits, logits + kBins);
  float sum = 0, weighted = 0;
  for (int64_t b = 0; b < kBins; ++b) {
    const float chance = std::exp(logits[b] - most);
    sum += chance;
    weighted += chance * b;
  }
  return weighted / sum;
}

void propose(const ProposalTask &task, int64_t frame) {
  struct Cell {
    float score;
    int32_t level, place;
    bool operator<(const Cell &other) const { return score > other.score; }
  };
  std::vector<Cell> cells;
  for (int64_t l = 0; l < task.levels; ++l) {
    const DetectorLevel &own = task.level[l];
    const int64_t count = own.height * own.width;
    for (int64_t i = frame * count; i < (frame + 1) * count; ++i) {
      cells.push_back({greatest_logit(own.predictions + i * own.step, task.classes), int32_t(l), int32_t(i)});
    }
  }
  const int64_t candidates = std::min<int64_t>(task.candidates, cells.size());
  std::nth_element(cells.begin(), cells.begin() + candidates, cells.end());
  std::sort(cells.begin(), cells.begin() + candidates);

  const float width = task.level[0].width * task.level[0].stride, height = task.level[0].height * task.level[0].stride;
  std::vector<float> side[4], area(candidates);  // left, top, right, bottom
  for (auto &values : side) values.resize(candidates);
  std::vector<int32_t> label(candidates);
  std::vector<int64_t> kept, dropped;
  for (int64_t j = 0; j < candidates && int64_t(kept.size()) < task.queries; ++j) {
    const DetectorLevel &own = task.level[cells[j].level];
    const float *logits = own.predictions + cells[j].place * own.step, *distances = logits + task.classes;
    const int64_t place = cells[j].place % (own.height * own.width);
    const float centre[2] = {float(place % own.width * own.stride), float(place / own.width * own.stride)};
    for (int64_t s = 0; s < 4; ++s) {
      const float distance = own.stride * distance_of(distances + s * kBins);
      const float at = (centre[s % 2] + (s < 2 ? -distance : distance)) / (s % 2 ? height : width);
      side[s][j] = std::min(std::max(at, 0.0f), 1.0f);
    }
    const float left = side[0][j], top = side[1][j], right = side[2][j], bottom = side[3][j];
    const int32_t own_label = std::max_element(logits, logits + task.classes) - logits;
    area[j] = (right - left) * (bottom - top);
    label[j] = own_label;
    int32_t repeated = 0;  // of any surer one, whether that was dropped or not
    for (int64_t i = 0; i < j; ++i) {
      const float across = std::min(right, side[2][i]) - std::max(left, side[0][i]);
      const float down = std::min(bottom, side[3][i]) - std::max(top, side[1][i]);
      const float shared = std::max(across, 0.0f) * std::max(down, 0.0f);
      repeated |= shared > (label[i] == own_label ? task.same : task.other) * (area[i] + area[j]);
    }
    (repeated ? dropped : kept).push_back(j);
  }
  const int64_t alive = kept.size();
  kept.insert(kept.end(), dropped.begin(), dropped.end());
  for (int64_t q = 0; q < std::min<int64_t>(task.queries, kept.size()); ++q) {
    const Cell &cell = cells[kept[q]];
    const DetectorLevel &own = task.level[cell.level];
    const int64_t row = frame * task.queries + q;
    for (int64_t s = 0; s < 4; ++s) task.boxes[row * 4 + s] = side[s][kept[q]];
    if (q < alive) {
      std::memcpy(task.logits + row * task.classes, own.predictions + cell.place * own.step,
                  task.classes * sizeof(float));
    }
    std::memcpy(task.content + row * task.channels, own.content + cell.place * own.content_step,
                task.channels * sizeof(float));
  }
}
