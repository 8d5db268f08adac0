// Softmax attention over the cache. Included once for each instruction set.
//
// A region is read in chunks of kChunk slots. Each chunk gives a partial result, and partial
// results are joined in the order of the chunks, whoever computed them.

constexpr int kChunk = 128;
constexpr int kSlots = 16;  // whose keys are turned at a time

// Consecutive new tokens of one segment, for one KV group.
struct Task {
  int32_t segment, group, row, tokens;
  int32_t chunk;    // the only one to read, or -1 for all
  int64_t partial;  // where its partial results go, with one chunk
};

// The softmax of some scores: their maximum, the sum of their exponentials, the mixed values.
struct Partial {
  float most, total;
  float* mixed;  // [head_dim]
};

TRIM_INLINE void join(Partial& into, const Partial& other, int dim) {
  if (other.total == 0.0f) return;
  if (into.total == 0.0f) {
    into.most = other.most;
    into.total = other.total;
    memcpy(into.mixed, other.mixed, dim * sizeof(float));
    return;
  }
  const float most = into.most > other.most ? into.most : other.most;
  const float mine = exp8(splat(into.most - most))[0];
  const float theirs = exp8(splat(other.most - most))[0];
  into.most = most;
  into.total = into.total * mine + other.total * theirs;
  for (int d = 0; d < dim; ++d) into.mixed[d] = into.mixed[d] * mine + other.mixed[d] * theirs;
}

TRIM_INLINE int least(int64_t a, int b) { return a < b ? (int)a : b; }

class Heads {
 public:
  Heads(const TrimModel& model, const TrimCache& cache, int64_t layer, int64_t group)
      : dim_(model.head_dim),
        wide_(up(model.head_dim, 16)),
        quantised_(cache.key_scales != nullptr) {
    const int64_t at = (layer * model.groups + group) * cache.slots;
    keys_ = (const uint8_t*)cache.keys + at * dim_ * (quantised_ ? 1 : 2);
    values_ = (const uint8_t*)cache.values + at * dim_ * (quantised_ ? 1 : 2);
    if (quantised_) {
      key_scales_ = cache.key_scales + at;
      value_scales_ = cache.value_scales + at;
    }
  }

  int dim() const { return dim_; }
  int wide() const { return wide_; }

  void value(int64_t slot, float* out) const { load(values_, value_scales_, slot, out); }

  // Values as they are cached, where those can be read in whole registers.
  const uint16_t* halves(int64_t slot) const {
    return quantised_ || dim_ != wide_ ? nullptr : (const uint16_t*)values_ + slot * dim_;
  }

  // The cache seldom fits the processor's own, so each half is fetched while the other is worked on;
  // into the second level, for the first has too few misses in flight.
  void fetch_keys(int64_t slot) const { fetch(keys_, slot); }
  void fetch_values(int64_t slot) const { fetch(values_, slot); }

  // turned[d][0..kSlots) = the keys of `n` slots; those of missing slots are 0. `lines` is room.
  void turn(int64_t slot, int n, float* lines, float* turned) const {
    if (Isa::kTurnsHalves && n == kSlots && !quantised_ && dim_ % 32 == 0) {
      const uint16_t* p = (const uint16_t*)keys_ + slot * dim_;
      return Isa::turn_halves(p, dim_, turned);
    }
    for (int half = 0; half < kSlots; half += 8) {
      for (int i = 0; i < 8; ++i) {
        if (half + i < n)
          load(keys_, key_scales_, slot + half + i, lines + i * wide_);
        else
          memset(lines + i * wide_, 0, wide_ * sizeof(float));
      }
      for (int d = 0; d < wide_; d += 8) {
        v8f block[8];
        for (int i = 0; i < 8; ++i) block[i] = load8(lines + i * wide_ + d);
        transpose8(block);
        for (int i = 0; i < 8; ++i) store8(turned + (d + i) * kSlots + half, block[i]);
      }
    }
  }

 private:
  void load(const uint8_t* base, const float* scales, int64_t slot, float* out) const {
    if (quantised_) {
      const int8_t* p = (const int8_t*)base + slot * dim_;
      const float scale = scales[slot];
      int d = 0;
      for (; d + 8 <= dim_; d += 8) store8(out + d, Isa::load_int8(p + d) * scale);
      for (; d < dim_; ++d) out[d] = p[d] * scale;
    } else {
      const uint16_t* p = (const uint16_t*)base + slot * dim_;
      int d = 0;
      for (; d + 16 <= dim_; d += 16) Isa::write(out + d, Isa::read(p + d));
      for (; d < dim_; ++d) out[d] = half_to_float(p[d]);
    }
    for (int d = dim_; d < wide_; ++d) out[d] = 0.0f;
  }

  void fetch(const uint8_t* base, int64_t slot) const {
    const int64_t bytes = dim_ * (quantised_ ? 1 : 2);
    for (int64_t i = 0; i < kSlots * bytes; i += 64) __builtin_prefetch(base + slot * bytes + i, 0, 2);
  }

  int dim_, wide_;
  bool quantised_;
  const uint8_t *keys_, *values_;
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
};

// scores[r][0..kSlots * TILES) = queries[r] . keys * scale, for ROWS rows side by side.
template <int ROWS, int TILES>
TRIM_INLINE void score(const float* const* queries, const float* turned, int dim, int wide,
                       float scale, float* scores) {
  Isa::Line sum[ROWS][TILES];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) sum[r][t] = Isa::zeros();
  for (int d = 0; d < dim; ++d) {
    Isa::Line keys[TILES];
    for (int t = 0; t < TILES; ++t) keys[t] = Isa::read(turned + (t * wide + d) * kSlots);
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t) sum[r][t] = Isa::plus(sum[r][t], queries[r][d], keys[t]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      Isa::write(scores + r * kChunk + t * kSlots, Isa::times(sum[r][t], scale));
}

template <int TILES>
TRIM_INLINE void score_rows(const float* const* queries, int rows, const float* turned, int dim,
                            int wide, float scale, float* scores) {
  for (int r = 0; r < rows; r += 4, scores += 4 * kChunk, queries += 4) {
    switch (rows - r) {
      case 1: score<1, TILES>(queries, turned, dim, wide, scale, scores); break;
      case 2: score<2, TILES>(queries, turned, dim, wide, scale, scores); break;
      case 3: score<3, TILES>(queries, turned, dim, wide, scale, scores); break;
      default: score<4, TILES>(queries, turned, dim, wide, scale, scores);
    }
  }
}

// out[r][0..16 * PARTS) += the `n` rows of values, weighted by weights[r], for ROWS rows.
template <int ROWS, int PARTS, class Number>
TRIM_INLINE void mix(const float* weights, int n, const Number* values, int stride,
                     float* const* out, int at) {
  Isa::Line sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = Isa::read(out[r] + at + 16 * i);
  for (int j = 0; j < n; ++j) {
    Isa::Line value[PARTS];
    for (int i = 0; i < PARTS; ++i)
      value[i] = Isa::read(values + (int64_t)j * stride + at + 16 * i);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < PARTS; ++i)
        sum[r][i] = Isa::plus(sum[r][i], weights[r * kChunk + j], value[i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) Isa::write(out[r] + at + 16 * i, sum[r][i]);
}

// The same for all that `stride` holds.
template <int ROWS, class Number>
TRIM_INLINE void mix_all(const float* weights, int n, const Number* values, int stride,
                         float* const* out) {
  int at = 0;
  for (; at + 64 <= stride; at += 64) mix<ROWS, 4>(weights, n, values, stride, out, at);
  for (; at < stride; at += 16) mix<ROWS, 1>(weights, n, values, stride, out, at);
}

template <class Number>
TRIM_INLINE void mix_rows(const float* weights, int rows, int n, const Number* values, int stride,
                          float* const* out) {
  constexpr int kMost = Isa::kMixed;
  for (; rows >= kMost; rows -= kMost, weights += kMost * kChunk, out += kMost)
    mix_all<kMost>(weights, n, values, stride, out);
  if constexpr (kMost == 4) {
    if (rows == 3) mix_all<3>(weights, n, values, stride, out);
    if (rows == 2) mix_all<2>(weights, n, values, stride, out);
    if (rows == 1) mix_all<1>(weights, n, values, stride, out);
  }
}

// Scores become exponentials; the result has nothing mixed yet.
TRIM_INLINE void soften(float* scores, int64_t count, int wide, Partial& out) {
  v8f most = splat(-INFINITY);
  for (int64_t j = 0; j < count; j += 8) most = max8(most, load8(scores + j));
  out.most = highest8(most);
  out.total = 0.0f;
  memset(out.mixed, 0, wide * sizeof(float));
  if (out.most == -INFINITY) {
    memset(scores, 0, count * sizeof(float));
    return;
  }
  v8f total = splat(0);
  for (int64_t j = 0; j < count; j += 8) {
    const v8f raw = load8(scores + j), e = exp8(raw - out.most);
    const v8f p = raw > splat(-INFINITY) ? e : splat(0);
    store8(scores + j, p);
    total += p;
  }
  out.total = sum8(total);
}

// Slots `from..from + n` that token `here` must not see have no weight.
TRIM_INLINE void hide(float* scores, int64_t from, int n, int32_t here, const int32_t* cached,
                      int window) {
  if (!cached && !window && n == kSlots && from + n - 1 <= here) return;
  for (int j = 0; j < kSlots; ++j) {
    const int32_t there = j >= n ? here + 1 : cached ? cached[from + j] : (int32_t)(from + j);
    if (there > here || (window && there <= here - window)) scores[j] = -INFINITY;
  }
}

// One chunk of one segment for `rows` query heads; row r is token r / queries at `position`.
// `out[r].mixed` is written. Slots `from..to` count from the region's start, which has `held`.
static void attend(const Heads& heads, const float* const* queries, const int32_t* position,
                   int rows, int64_t start, int64_t from, int64_t to, int64_t held,
                   const int32_t* cached, int window, float scale, Local& scratch, Partial* out) {
  const int wide = heads.wide(), dim = heads.dim();
  float* scores = scratch.scores.fit((int64_t)rows * kChunk);
  constexpr int kTurned = Isa::kTiles * kSlots;
  float* turned = scratch.turned.fit((int64_t)wide * (kTurned + 8));
  float* lines = turned + (int64_t)wide * kTurned;
  const int64_t count = to - from;
  for (int64_t at = 0; at < count; at += kTurned) {
    int tiles = 0;
    for (; tiles < Isa::kTiles && at + tiles * kSlots < count; ++tiles) {
      const int64_t slot = at + tiles * kSlots;
      heads.fetch_values(start + from + slot);
      heads.turn(start + from + slot, least(count - slot, kSlots), lines,
                 turned + (int64_t)tiles * wide * kSlots);
    }
    if (tiles == 1)
      score_rows<1>(queries, rows, turned, dim, wide, scale, scores + at);
    else
      score_rows<Isa::kTiles>(queries, rows, turned, dim, wide, scale, scores + at);
  }
  for (int64_t at = 0; at < count; at += kSlots)
    for (int r = 0; r < rows; ++r)
      hide(scores + (int64_t)r * kChunk + at, from + at, least(count - at, kSlots), position[r],
           cached, window);
  const int64_t padded = up(count, kSlots);
  for (int r = 0; r < rows; ++r) soften(scores + (int64_t)r * kChunk, padded, wide, out[r]);
  float* values = scratch.values.fit((int64_t)kSlots * wide);
  float** mixed = scratch.mixing.fit(rows);
  for (int r = 0; r < rows; ++r) mixed[r] = out[r].mixed;
  for (int64_t at = 0; at < count; at += kSlots) {
    const int n = least(count - at, kSlots);
    if (to + at < held) heads.fetch_keys(start + to + at);
    const uint16_t* halves = heads.halves(start + from + at);
    if (rows <= Isa::kMixed && halves) {
      mix_rows(scores + at, rows, n, halves, wide, mixed);
      continue;
    }
    for (int i = 0; i < n; ++i) heads.value(start + from + at + i, values + (int64_t)i * wide);
    mix_rows(scores + at, rows, n, values, wide, mixed);
  }
}
