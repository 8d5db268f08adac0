// Softmax attention over the cache. Included once for each instruction set.
//
// A region is read in chunks of kChunk slots. Each chunk gives a partial result, and partial
// results are joined in the order of the chunks, whoever computed them.

constexpr int kChunk = 128;
constexpr int kSlots = 16;  // whose keys are turned at a time
constexpr int kAhead = 32;  // slots fetched early: the cache seldom fits the processor's own

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

class Heads {
 public:
  Heads(const TrimModel& model, const TrimCache& cache, int64_t layer, int64_t group)
      : dim_(model.head_dim),
        wide_(up(model.head_dim, 8)),
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

  void key(int64_t slot, float* out) const { load(keys_, key_scales_, slot, out); }
  void value(int64_t slot, float* out) const { load(values_, value_scales_, slot, out); }

 private:
  void load(const uint8_t* base, const float* scales, int64_t slot, float* out) const {
    if (quantised_) {
      const int8_t* p = (const int8_t*)base + slot * dim_;
      for (int d = 0; d < dim_; d += 64) __builtin_prefetch(p + kAhead * dim_ + d);
      const float scale = scales[slot];
      int d = 0;
      for (; d + 8 <= dim_; d += 8) store8(out + d, Isa::load_int8(p + d) * scale);
      for (; d < dim_; ++d) out[d] = p[d] * scale;
    } else {
      const uint16_t* p = (const uint16_t*)base + slot * dim_;
      for (int d = 0; d < dim_; d += 32) __builtin_prefetch(p + kAhead * dim_ + d);
      int d = 0;
      for (; d + 8 <= dim_; d += 8) store8(out + d, Isa::load_half(p + d));
      for (; d < dim_; ++d) out[d] = half_to_float(p[d]);
    }
    for (int d = dim_; d < wide_; ++d) out[d] = 0.0f;
  }

  int dim_, wide_;
  bool quantised_;
  const uint8_t *keys_, *values_;
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
};

// out[0..8 * PARTS) += the `n` rows of values, weighted.
template <int PARTS>
TRIM_INLINE void mix(const float* weights, int n, const float* values, int wide, float* out) {
  v8f sum[PARTS];
  for (int i = 0; i < PARTS; ++i) sum[i] = load8(out + 8 * i);
  for (int j = 0; j < n; ++j) {
    const v8f weight = splat(weights[j]);
    for (int i = 0; i < PARTS; ++i)
      sum[i] = Isa::fma(weight, load8(values + (int64_t)j * wide + 8 * i), sum[i]);
  }
  for (int i = 0; i < PARTS; ++i) store8(out + 8 * i, sum[i]);
}

// One chunk of one segment for `rows` query heads; row r is token r / queries at `position`.
// `out[r].mixed` is written. Slots `from..to` count from the region's start.
static void attend(const Heads& heads, const float* const* queries, const int32_t* position,
                   int rows, int64_t start, int64_t from, int64_t to, const int32_t* cached,
                   int window, float scale, Local& scratch, Partial* out) {
  const int wide = heads.wide(), dim = heads.dim();
  float* scores = scratch.scores.fit((int64_t)rows * kChunk);
  float* turned = scratch.turned.fit((int64_t)wide * kSlots + wide * 8);
  float* line = turned + (int64_t)wide * kSlots;
  const int64_t count = to - from;
  for (int64_t at = 0; at < count; at += kSlots) {
    const int n = (int)(count - at < kSlots ? count - at : kSlots);
    for (int half = 0; half < kSlots; half += 8) {
      for (int i = 0; i < 8; ++i) {
        if (half + i < n)
          heads.key(start + from + at + half + i, line + i * wide);
        else
          memset(line + i * wide, 0, wide * sizeof(float));
      }
      for (int d = 0; d < wide; d += 8) {
        v8f block[8];
        for (int i = 0; i < 8; ++i) block[i] = load8(line + i * wide + d);
        transpose8(block);
        for (int i = 0; i < 8; ++i) store8(turned + (d + i) * kSlots + half, block[i]);
      }
    }
    for (int r = 0; r < rows; r += 4) {
      v8f sum[4][2];
      const float* q[4];
      for (int i = 0; i < 4; ++i) {
        q[i] = queries[r + i < rows ? r + i : r];
        sum[i][0] = sum[i][1] = splat(0);
      }
      for (int d = 0; d < dim; ++d) {
        const v8f low = load8(turned + d * kSlots), high = load8(turned + d * kSlots + 8);
        for (int i = 0; i < 4; ++i) {
          const v8f factor = splat(q[i][d]);
          sum[i][0] = Isa::fma(factor, low, sum[i][0]);
          sum[i][1] = Isa::fma(factor, high, sum[i][1]);
        }
      }
      for (int i = 0; i < 4 && r + i < rows; ++i) {
        float* s = scores + (int64_t)(r + i) * kChunk + at;
        store8(s, sum[i][0] * scale);
        store8(s + 8, sum[i][1] * scale);
        const int32_t here = position[r + i];
        for (int j = 0; j < kSlots; ++j) {
          const int64_t slot = from + at + j;
          const int32_t there = j >= n ? here + 1 : cached ? cached[slot] : (int32_t)slot;
          if (there > here || (window && there <= here - window)) s[j] = -INFINITY;
        }
      }
    }
  }
  const int64_t padded = up(count, kSlots);
  for (int r = 0; r < rows; ++r) {
    float* s = scores + (int64_t)r * kChunk;
    v8f most = splat(-INFINITY);
    for (int64_t j = 0; j < padded; j += 8) most = max8(most, load8(s + j));
    out[r].most = highest8(most);
    out[r].total = 0.0f;
    memset(out[r].mixed, 0, wide * sizeof(float));
    if (out[r].most == -INFINITY) {
      memset(s, 0, padded * sizeof(float));
      continue;
    }
    v8f total = splat(0);
    for (int64_t j = 0; j < padded; j += 8) {
      const v8f raw = load8(s + j), e = exp8(raw - out[r].most);
      const v8f p = raw > splat(-INFINITY) ? e : splat(0);
      store8(s + j, p);
      total += p;
    }
    out[r].total = sum8(total);
  }
  float* values = scratch.values.fit((int64_t)kSlots * wide);
  for (int64_t at = 0; at < count; at += kSlots) {
    const int n = (int)(count - at < kSlots ? count - at : kSlots);
    for (int i = 0; i < n; ++i) heads.value(start + from + at + i, values + (int64_t)i * wide);
    for (int r = 0; r < rows; ++r) {
      const float* s = scores + (int64_t)r * kChunk + at;
      if (out[r].total == 0.0f) continue;
      int d = 0;
      for (; d + 64 <= wide; d += 64) mix<8>(s, n, values + d, wide, out[r].mixed + d);
      for (; d < wide; d += 8) mix<1>(s, n, values + d, wide, out[r].mixed + d);
    }
  }
}
