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
  const v8f weights = Isa::exp(v8f{into.most - most, other.most - most});
  const float mine = weights[0], theirs = weights[1];
  into.most = most;
  into.total = into.total * mine + other.total * theirs;
  for (int d = 0; d < dim; ++d) into.mixed[d] = into.mixed[d] * mine + other.mixed[d] * theirs;
}

// The keys and values of one KV group of one layer.
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

  void key(int64_t slot, float* out) const { load(keys_, key_scales_, slot, out); }
  void value(int64_t slot, float* out) const { load(values_, value_scales_, slot, out); }

  // As they are cached, where those can be read in whole registers of `width` numbers.
  const uint16_t* cached_keys(int64_t slot, int width) const { return cached(keys_, slot, width); }
  const uint16_t* cached_values(int64_t slot, int width) const {
    return cached(values_, slot, width);
  }

  // The cache seldom fits the processor's own, so each half is fetched while the other is worked on;
  // into the second level, for the first has too few misses in flight.
  void fetch_keys(int64_t slot) const { fetch(keys_, slot); }
  void fetch_values(int64_t slot) const { fetch(values_, slot); }

 private:
  const uint16_t* cached(const uint8_t* base, int64_t slot, int width) const {
    return quantised_ || dim_ % width ? nullptr : (const uint16_t*)base + slot * dim_;
  }

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
      for (; d + 8 <= dim_; d += 8) store8(out + d, widen8(p + d));
      for (; d < dim_; ++d) out[d] = widen(p[d]);
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
    const v8f raw = load8(scores + j), e = Isa::exp(raw - out.most);
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

#ifdef TRIM_BF16
#include "attention_bf16.h"
#else
#include "attention_fp32.h"
#endif

// One chunk of one segment for `rows` query heads; row r is token r / queries at `position`.
// `out[r].mixed` is written. Slots `from..to` count from the region's start, which has `held`.
static void attend(const Heads& heads, const float* const* queries, const int32_t* position,
                   int rows, int64_t start, int64_t from, int64_t to, int64_t held,
                   const int32_t* cached, int window, float scale, Local& scratch, Partial* out) {
  float* scores = scratch.scores.fit((int64_t)rows * kChunk);
  const int count = (int)(to - from);
  score_chunk(heads, queries, rows, start + from, count, scale, scratch, scores);
  for (int at = 0; at < count; at += kSlots)
    for (int r = 0; r < rows; ++r)
      hide(scores + (int64_t)r * kChunk + at, from + at, least(count - at, kSlots), position[r],
           cached, window);
  const int64_t padded = up(count, kSlots);
  for (int r = 0; r < rows; ++r)
    soften(scores + (int64_t)r * kChunk, padded, heads.wide(), out[r]);
  mix_chunk(heads, scores, rows, start + from, count, scratch, out, [&](int at) {
    if (to + at < held) heads.fetch_keys(start + to + at);
  });
}
