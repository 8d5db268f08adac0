// Softmax attention over the cache of one sequence, in chunks of kChunk slots.
//
//   weight[j] = exp(score[j] - max)      score[j] = scale * (query . key[j])
//   partial result of a chunk = (max, sum of weights, sum_j(weight[j] * value[j]))
//
// Partial results are merged in the order of the chunks, no matter which thread computed them, as
// in "Online normalizer calculation for softmax" (Milakov and Gimelshein, 2018, arXiv 1805.02867).
// Layout of the cache: `TrimCache` in native.h.

constexpr int kChunk = 128;
constexpr int kAllChunks = -1, kChosenPages = -2;
constexpr int kSlots = 16;  // whose keys are transposed at a time: one tile

// A piece of work: some new tokens of one segment, for one KV group.
struct AttentionTask {
  int32_t segment, group;
  int32_t first, tokens;        // where the rows of the tokens are in a list, in rising order
  int32_t first_layer, layers;  // the layers first_layer..layers in which these rows attend
  int32_t chunk;                // the only chunk to compute, kAllChunks, or kChosenPages
  int64_t partial;              // index of the partial results, if there is only one chunk
};

// The partial result of one query over some slots.
struct PartialSoftmax {
  float max, sum;  // of scores; of weights
  float* values;   // [head_dim], the weighted sum of values
};

// Add the partial result of later slots.
TRIM_INLINE void merge(PartialSoftmax& into, const PartialSoftmax& other, int dim) {
  if (other.sum == 0.0f) return;
  if (into.sum == 0.0f) {
    into.max = other.max;
    into.sum = other.sum;
    memcpy(into.values, other.values, dim * sizeof(float));
    return;
  }
  const float max = into.max > other.max ? into.max : other.max;
  const v8f weights = Isa::exp(v8f{into.max - max, other.max - max});
  const float old_weight = weights[0], new_weight = weights[1];
  into.max = max;
  into.sum = into.sum * old_weight + other.sum * new_weight;
  for (int d = 0; d < dim; ++d)
    into.values[d] = into.values[d] * old_weight + other.values[d] * new_weight;
}

// The keys and values of one KV group of one layer.
class CachedHead {
 public:
  CachedHead(const TrimModel& model, const TrimCache& cache, int64_t layer, int64_t group)
      : dim_(model.head_dim),
        padded_(round_up(model.head_dim, 16)),
        quantised_(cache.key_scales != nullptr) {
    const int64_t first = (layer * model.groups + group) * cache.slots;
    keys_ = (const uint8_t*)cache.keys + first * dim_ * (quantised_ ? 1 : 2);
    values_ = (const uint8_t*)cache.values + first * dim_ * (quantised_ ? 1 : 2);
    if (quantised_) {
      key_scales_ = cache.key_scales + first;
      value_scales_ = cache.value_scales + first;
    }
  }

  // A head of bf16 keys and values [slots][dim] that are elsewhere.
  CachedHead(int dim, const uint16_t* keys, const uint16_t* values)
      : dim_(dim),
        padded_(round_up(dim, 16)),
        quantised_(false),
        keys_((const uint8_t*)keys),
        values_((const uint8_t*)values) {}

  int dim() const { return dim_; }
  int padded_dim() const { return padded_; }

  // Convert one key or value to fp32, [padded_dim]; the padding is 0.
  void key(int64_t slot, float* out) const { load(keys_, key_scales_, slot, out); }
  void value(int64_t slot, float* out) const { load(values_, value_scales_, slot, out); }

  // Return the cached bf16 numbers, or null if a head is not a multiple of `width` of them.
  const uint16_t* bf16_keys(int64_t slot, int width) const { return bf16(keys_, slot, width); }
  const uint16_t* bf16_values(int64_t slot, int width) const { return bf16(values_, slot, width); }

  // Prefetch kSlots keys or values: the values while keys are computed with, and the other way
  // round. Into the second-level cache, because the first allows too few misses in flight.
  void prefetch_keys(int64_t slot) const { prefetch(keys_, slot); }
  void prefetch_values(int64_t slot) const { prefetch(values_, slot); }

 private:
  const uint16_t* bf16(const uint8_t* base, int64_t slot, int width) const {
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
      for (; d + 8 <= dim_; d += 8) store8(out + d, bf16_to_float8(p + d));
      for (; d < dim_; ++d) out[d] = bf16_to_float(p[d]);
    }
    for (int d = dim_; d < padded_; ++d) out[d] = 0.0f;
  }

  void prefetch(const uint8_t* base, int64_t slot) const {
    const int64_t bytes = dim_ * (quantised_ ? 1 : 2);
    for (int64_t i = 0; i < kSlots * bytes; i += 64)
      __builtin_prefetch(base + slot * bytes + i, 0, 2);
  }

  int dim_, padded_;
  bool quantised_;
  const uint8_t *keys_, *values_;
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
};

// Replace scores by weights, and set `out` to their maximum, their sum, and no values yet.
TRIM_INLINE void softmax_weights(float* scores, int64_t count, int padded, PartialSoftmax& out) {
  v8f highest = splat(-INFINITY);
  for (int64_t j = 0; j < count; j += 8) highest = max8(highest, load8(scores + j));
  out.max = max_element8(highest);
  out.sum = 0.0f;
  memset(out.values, 0, padded * sizeof(float));
  if (out.max == -INFINITY) {
    memset(scores, 0, count * sizeof(float));
    return;
  }
  v8f sum = splat(0);
  for (int64_t j = 0; j < count; j += 8) {
    const v8f raw = load8(scores + j), e = Isa::exp(raw - out.max);
    const v8f p = raw > splat(-INFINITY) ? e : splat(0);
    store8(scores + j, p);
    sum += p;
  }
  out.sum = sum8(sum);
}

// Set the score of each of the slots `from..from + kSlots` to -infinity if the token at `position`
// must not attend to it: later tokens, those outside the window, and slots behind the first n.
TRIM_INLINE void mask_scores(float* scores, int64_t from, int n, int32_t position,
                             const int32_t* slot_positions, int window) {
  if (!slot_positions && !window && n == kSlots && from + n - 1 <= position) return;
  for (int j = 0; j < kSlots; ++j) {
    const int32_t key_position = j >= n           ? position + 1
                                 : slot_positions ? slot_positions[from + j]
                                                  : (int32_t)(from + j);
    if (key_position > position || (window && key_position <= position - window))
      scores[j] = -INFINITY;
  }
}
