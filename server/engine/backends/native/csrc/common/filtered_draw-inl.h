// Draws with filters: top-k, top-p and min-p leave the highest outputs of a row, and one of them is
// drawn.
//
// Little is computed exactly: the blocks that may hold outputs of at least some `floor`, which is
// chosen so that the filters leave no others. Top-p without top-k needs the sum of all
// probabilities, too. The coarse values of the other blocks give bounds of it. Where these leave it
// unclear whether the output that was drawn is kept, `run` says so.

constexpr float kDeviations = 7;     // the standard deviations in a bound of an error
constexpr double kSumMargin = 1e-5;  // for sums that are added in another order
constexpr int kMostCandidates = 8;   // of so many blocks one is computed for itself, at most

// What is known of the values of a row by output block, [blocks] padded with -inf and zeros.
struct RowBounds {
  static constexpr int kFields = 5;
  static int64_t padded(int64_t blocks) { return round_up(blocks, 8); }

  float *upper, *lower;  // bounds of the block's highest value
  float* highest;        // its highest value, coarse or exact
  float* mass;           // sum of e^((value - highest) / temperature); only for top-p without top-k
  float* error;          // of its values, at most

  RowBounds(float* data, int64_t row, int64_t blocks) {
    const int64_t n = padded(blocks);
    float** fields[kFields] = {&upper, &lower, &highest, &mass, &error};
    for (int i = 0; i < kFields; ++i) *fields[i] = data + (row * kFields + i) * n;
  }
  void pad(int64_t blocks) {
    for (int64_t b = blocks; b < padded(blocks); ++b) clear(b);
  }
  // Note that a block has no outputs.
  void clear(int64_t block) const {
    upper[block] = lower[block] = highest[block] = -INFINITY;
    mass[block] = error[block] = 0;
  }
};

TRIM_INLINE void update_max(OutputValue& best, float value, int32_t output) {
  if (value > best.value || (value == best.value && output < best.output)) best = {value, output};
}

class FilteredDraw {
 public:
  FilteredDraw(const TrimDraw& draw, const RowBounds& bounds, int64_t blocks, bool is_coarse,
               ThreadBuffers& local)
      : draw_(draw),
        bounds_(bounds),
        blocks_(blocks),
        is_coarse_(is_coarse),
        inverse_(1.0f / draw.temperature),
        found_(local.found),
        below_(local.below) {}

  static bool is_filtered(const TrimDraw& draw) {
    return draw.temperature > 0 && (draw.top_k > 0 || draw.top_p < 1 || draw.min_p > 0);
  }

  // Return the sum of e^((value - highest) / temperature) over the values of a block.
  static float mass(const TrimDraw& draw, const float* values, float highest) {
    if (!sums_all(draw)) return 0;
    v8f sum = splat(0);
    for (int i = 0; i < 16; i += 8)
      sum += Isa::exp(max8((load8(values + i) - highest) / draw.temperature, splat(-80)));
    return sum8(sum);
  }

  // Draw an output, -1 if the highest value is not a finite number; return false if it is unclear.
  // `exact(block, values)` computes the values of a block.
  template <class Exact>
  bool run(const Exact& exact, int32_t& output) {
    float highest = -INFINITY, lower = -INFINITY;
    for (int64_t b = 0; b < blocks_; ++b) {
      if (bounds_.highest[b] > highest) highest = bounds_.highest[b];
      if (bounds_.lower[b] > lower) lower = bounds_.lower[b];
    }
    output = -1;
    if (!std::isfinite(highest)) return true;
    float floor = lower + draw_.temperature * (logf(draw_.min_p) - 0.01f);
    if (draw_.top_k > 0)
      floor = kth_highest_lower_bound();
    else if (sums_all(draw_))
      floor = floor_of_mass(highest);
    for (float step = draw_.temperature;; floor -= step, step *= 2) {
      if (is_coarse_ && kMostCandidates * count_candidates(floor) > blocks_) return false;
      find_outputs(exact, floor);
      int64_t sure = 0;
      const int64_t kept = count_kept(floor, sure);
      if (kept >= 0) return draw_one(kept, output) < sure;
    }
  }

 private:
  static bool sums_all(const TrimDraw& draw) { return draw.top_k <= 0 && draw.top_p < 1; }

  double relative(float value, float to) const { return exp((double)(value - to) * inverse_); }

  // Return a value that at least `top_k` outputs reach: there is one in each of so many blocks.
  float kth_highest_lower_bound() {
    if (draw_.top_k > blocks_) return -INFINITY;
    below_.assign(bounds_.lower, bounds_.lower + blocks_);
    std::nth_element(below_.begin(), below_.begin() + draw_.top_k - 1, below_.end(),
                     std::greater<float>());
    return below_[draw_.top_k - 1];
  }

  // Return a value such that the outputs above it have somewhat more than `top_p` of the mass, as
  // far as can be seen from whole blocks.
  float floor_of_mass(float highest) const {
    const double wanted = 0.5 * (1 + draw_.top_p) * mass_from(-INFINITY, highest);
    float near = 0, far = 64;  // in temperatures
    while (far - near > 0.25f) {
      const float middle = 0.5f * (near + far);
      (mass_from(highest - draw_.temperature * middle, highest) < wanted ? near : far) = middle;
    }
    return highest - draw_.temperature * far;
  }

  // Return the mass of the blocks with a highest value of at least `from`, relative to e^`to`.
  double mass_from(float from, float to) const {
    double sum = 0;
    for_blocks([&](int64_t b, v8f* sums) {
      const v8f highest = load8(bounds_.highest + b);
      sums[0] += highest >= from ? mass_of(b, to) : splat(0);
    }, &sum, 1);
    return sum;
  }

  // Return the masses of blocks `b..b + 8`, relative to e^`to`.
  v8f mass_of(int64_t b, float to) const {
    return load8(bounds_.mass + b) * weight_of(b, to);
  }
  v8f weight_of(int64_t b, float to) const {
    return Isa::exp(max8((load8(bounds_.highest + b) - to) * inverse_, splat(-80)));
  }

  // Add what `body(block, sums)` adds for each eight blocks, in a fixed order.
  template <class Body>
  void for_blocks(const Body& body, double* out, int count) const {
    constexpr int64_t kTogether = 256;
    for (int64_t first = 0; first < blocks_; first += kTogether) {
      v8f sums[3] = {splat(0), splat(0), splat(0)};
      for (int64_t b = first; b < blocks_ && b < first + kTogether; b += 8) body(b, sums);
      for (int i = 0; i < count; ++i) out[i] += sum8(sums[i]);
    }
  }

  int64_t count_candidates(float floor) const {
    int64_t count = 0;
    for (int64_t b = 0; b < blocks_; ++b)
      count += bounds_.upper[b] >= floor && bounds_.upper[b] > -INFINITY;
    return count;
  }

  // Find the outputs of at least `floor`, sorted, and the values below it in the same blocks.
  template <class Exact>
  void find_outputs(const Exact& exact, float floor) {
    found_.clear();
    below_.clear();
    is_all_ = true;
    for (int64_t b = 0; b < blocks_; ++b) {
      if (bounds_.upper[b] == -INFINITY) continue;
      if (!(bounds_.upper[b] >= floor)) {
        is_all_ = false;
        continue;
      }
      alignas(64) float values[1][16];
      exact(b, values);
      for (int o = 0; o < 16; ++o) {
        if (values[0][o] >= floor)
          found_.push_back({values[0][o], (int32_t)(16 * b + o)});
        else if (values[0][o] > -INFINITY)
          below_.push_back(values[0][o]);
      }
    }
    is_all_ = is_all_ && below_.empty();
    std::sort(found_.begin(), found_.end(), [](const OutputValue& a, const OutputValue& b) {
      return a.value > b.value || (a.value == b.value && a.output < b.output);
    });
  }

  // Return how many of the outputs that were found may be kept, or -1 if others may be, too. `sure`
  // are kept in any case.
  int64_t count_kept(float floor, int64_t& sure) const {
    const int64_t found = (int64_t)found_.size();
    if (found == 0) return -1;
    const int64_t limit = draw_.top_k > 0 && draw_.top_k < found ? draw_.top_k : found;
    double low = 0, high = 0, above = 0;
    if (sums_all(draw_))
      sum_all(floor, low, high);
    else
      for (int64_t i = 0; i < limit; ++i)
        low = high += relative(found_[i].value, found_[0].value);
    for (int64_t i = 0; i < limit; ++i) {
      const double probability = relative(found_[i].value, found_[0].value);
      const bool is_first = i == 0;  // which is always kept
      if (!is_first && probability < draw_.min_p) return i;
      if (!is_first && draw_.top_p < 1 && above >= draw_.top_p * high) return i;
      if (is_first || draw_.top_p >= 1 || above < draw_.top_p * low) sure = i + 1;
      above += probability;
    }
    return is_all_ || !sums_all(draw_) || above >= draw_.top_p * high ? limit : -1;
  }

  // Set bounds of the sum of all probabilities, relative to the highest output that was found.
  void sum_all(float floor, double& low, double& high) const {
    const float to = found_[0].value;
    if (!is_coarse_) {
      low = high = mass_from(-INFINITY, to);
      return;
    }
    double rest[3] = {0, 0, 0};  // lower and upper bound without noise, variance
    for_blocks([&](int64_t b, v8f* sums) {
      const v8f deviation = load8(bounds_.error + b) * (inverse_ / kDeviations);
      const v8f variance = min8(deviation * deviation, splat(80));
      const v8f mass = load8(bounds_.upper + b) < floor ? mass_of(b, to) : splat(0);
      sums[0] += mass * Isa::exp(-0.5f * variance);
      sums[1] += mass * Isa::exp(0.5f * variance);
      sums[2] += mass * weight_of(b, to) * (Isa::exp(variance) - 1.0f);
    }, rest, 3);
    double sum = 0;
    for (const OutputValue& one : found_) sum += relative(one.value, to);
    for (float value : below_) sum += relative(value, to);
    const double noise = kDeviations * sqrt(rest[2]);
    low = (sum + std::max(0.0, rest[0] - noise)) * (1 - kSumMargin);
    high = (sum + rest[1] + noise) * (1 + kSumMargin);
  }

  // Draw one of the `kept` highest outputs and return its index.
  int64_t draw_one(int64_t kept, int32_t& output) const {
    OutputValue best{-INFINITY, INT32_MAX};
    int64_t drawn = 0;
    for (int64_t i = 0; i < kept; ++i) {
      const int32_t o = found_[i].output;
      const v8f noise = noise8(draw_.key, (uint32_t)o);
      update_max(best, found_[i].value + draw_.temperature * noise[0], o);
      if (best.output == o) drawn = i;
    }
    output = best.output;
    return drawn;
  }

  const TrimDraw& draw_;
  const RowBounds& bounds_;
  const int64_t blocks_;
  const bool is_coarse_;  // or exact: then `upper`, `lower` and `highest` are the same
  const float inverse_;   // 1 / temperature
  std::vector<OutputValue>& found_;
  std::vector<float>& below_;
  bool is_all_ = false;  // whether all outputs were found
};
