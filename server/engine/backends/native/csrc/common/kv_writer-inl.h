// The keys and values of a step's rows on their way into the cache, and recent queries on theirs to
// where evictions look at them.
//
// A row of `qkv` holds, for each KV group, its query heads, its key and its value:
//
//   [groups][queries + 2][head_dim]

class KVWriter : public SubBlock {
 public:
  KVWriter(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
           Buffers& buffers, ThreadPool& pool)
      : SubBlock(model, batch, buffers, pool),
        cache_(cache),
        group_((model.queries + 2) * model.head_dim),
        qkv_(round_up((int64_t)model.groups * group_, 16)) {
    b_.qkv.reserve(batch.rows * qkv_);
    b_.qk_factors.reserve(batch.rows * 2);
  }

 protected:
  // Return what a wide norm multiplies features by whose squares have this sum.
  float wide_factor(float squares, int64_t features) const {
    return 1.0f / sqrtf(squares / features + model_.eps);
  }

  // Compute `qk_factors` of the active rows of a layer with a wide norm.
  void find_wide_factors(const ActiveRows& active) {
    const int64_t queries = (int64_t)model_.queries * model_.head_dim;
    pool_.share(active.count, pool_.grain(active.count), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = active.row.get()[i];
        const float* group = b_.qkv.get() + r * qkv_;
        float of_queries = 0, of_keys = 0;
        for (int g = 0; g < model_.groups; ++g, group += group_) {
          of_queries += sum_squares(group, queries);
          of_keys += sum_squares(group + queries, model_.head_dim);
        }
        float* factors = b_.qk_factors.get() + 2 * r;
        factors[0] = wide_factor(of_queries, model_.groups * queries);
        factors[1] = wide_factor(of_keys, (int64_t)model_.groups * model_.head_dim);
      }
    });
    pool_.barrier();
  }

  // out[head_dim] = a query head of a KV group, or its key (number `queries`), after the norm.
  // `wide` are the row's factors of queries and keys, which a wide norm needs.
  void norm_head(const TrimLayer& layer, int64_t group, int head, const float* wide,
                 const float* x, float* out) const {
    const int dim = model_.head_dim;
    if (!layer.wide_qk_norm) {
      norm(x, layer.qk_norm + head * dim, dim, out);
      return;
    }
    const int64_t at = group * (model_.queries + 1) + head;
    apply_weight(x, wide[head == model_.queries], layer.qk_norm + at * dim, dim, out);
  }

  // Do the same, if there is a norm, then apply rotary embedding. It may be computed in place.
  void norm_and_rotate_head(const TrimLayer& layer, int64_t row, int64_t group, int head,
                            const float* wide, const float* x, float* out) const {
    const int rotated = model_.rotated, half = rotated / 2;
    const float* cos = layer.cos + (int64_t)batch_.positions[row] * rotated;
    const float* sin = layer.sin + (int64_t)batch_.positions[row] * rotated;
    if (layer.qk_norm) {
      norm_head(layer, group, head, wide, x, out);
      x = out;
    }
    for (int d = 0; d < half; ++d) {
      const float low = x[d], high = x[d + half];
      out[d] = low * cos[d] + high * sin[d];
      out[d + half] = high * cos[d + half] + low * sin[d + half];
    }
    for (int d = rotated; d < model_.head_dim; ++d) out[d] = x[d];
  }

  // out[queries + 1][head_dim] = the queries and the key of one row and KV group, normed and
  // rotated.
  void norm_and_rotate(int index, int64_t row, int64_t group, float* out) const {
    const float* heads = b_.qkv.get() + row * qkv_ + group * group_;
    const float* wide = b_.qk_factors.get() + 2 * row;
    for (int h = 0; h <= model_.queries; ++h, heads += model_.head_dim, out += model_.head_dim)
      norm_and_rotate_head(model_.layer[index], row, group, h, wide, heads, out);
  }

  // Write a key and a value of one row and KV group into the cache.
  void cache_head(int64_t layer, int64_t row, int64_t group, const float* key,
                  const float* value) const {
    const int64_t at = (layer * model_.groups + group) * cache_.slots + batch_.slots[row];
    write_cache(cache_.keys, cache_.key_scales, at, key, model_.head_dim);
    write_cache(cache_.values, cache_.value_scales, at, value, model_.head_dim);
  }

  // Write the rotated key of one row and KV group into the cache, and its value.
  void cache_token(int index, int64_t row, int64_t group, const float* key) const {
    const float* value =
        b_.qkv.get() + row * qkv_ + group * group_ + (model_.queries + 1) * model_.head_dim;
    cache_head(index, row, group, key, value);
  }

  // Return where a row's queries of a layer are recorded, or null if they are not: no eviction
  // looks at them, or a later row of the step takes the place.
  float* recorded_queries(int64_t layer, int64_t row) const {
    const int segment = b_.segment_of_row.get()[row];
    float* recent = batch_.recent_queries[segment];
    const int32_t position = batch_.positions[row], window = batch_.query_window;
    const int64_t last = batch_.row_offsets[segment + 1] - 1;
    if (!recent || batch_.positions[last] - position >= window) return nullptr;
    return recent + (layer * window + position % window) * recorded();
  }

  // Return how many numbers the queries of a row and layer are.
  int64_t recorded() const {
    return (int64_t)model_.groups * model_.queries * model_.head_dim;
  }

  // Record the queries of one row and KV group before rotation, for evictions that use them.
  void record_queries(int index, int64_t row, int64_t group) const {
    float* out = recorded_queries(index, row);
    if (!out) return;
    const int dim = model_.head_dim;
    out += group * model_.queries * dim;
    const float* heads = b_.qkv.get() + row * qkv_ + group * group_;
    for (int h = 0; h < model_.queries; ++h, heads += dim, out += dim) {
      if (model_.layer[index].qk_norm)
        norm_head(model_.layer[index], group, h, b_.qk_factors.get() + 2 * row, heads, out);
      else
        memcpy(out, heads, dim * sizeof(float));
    }
  }

  // Rotate and cache the rows of segments with more than one token, in place. They attend to each
  // other, so all must be cached before attention starts. Other rows: see `run_task`.
  void rotate_and_cache_prompts(int index, const ActiveRows& active) {
    pool_.share(active.count, pool_.grain(active.count), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = active.row.get()[i];
        if (b_.partial_ranges[r].count) continue;
        for (int g = 0; g < active.width.get()[i]; ++g) {
          float* heads = b_.qkv.get() + r * qkv_ + g * group_;
          record_queries(index, r, g);
          norm_and_rotate(index, r, g, heads);
          cache_token(index, r, g, heads + model_.queries * model_.head_dim);
        }
      }
    });
    pool_.barrier();
  }

  const TrimCache& cache_;
  const int64_t group_, qkv_;
};
