// Keys and values of shallow rows in the layers that they do not run through (see `TrimKVMaps`).
//
// They are written when the rows' last layer is done, for all layers above at once: one product
// that is cut by layer, KV group and rows. With wide norms, which join the keys of all groups, it is
// cut by layer and rows only.

class KVMapper : public KVWriter {
 public:
  KVMapper(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
           Buffers& buffers, ThreadPool& pool)
      : KVWriter(model, cache, batch, buffers, pool) {
    if (!batch.maps) return;
    for (int i = 0; i < model.layers; ++i)
      if (model.layer[i].wide_qk_norm) span_ = model.groups;
    for (int s = 0; s < batch.segments; ++s)
      if (batch.maps[s]) add_rows(s);
    size_t most = 0;
    for (const MappedRows& mapped : mapped_)
      if (mapped.rows.size() > most) most = mapped.rows.size();
    b_.features.resize(most, model.hidden);
  }

 protected:
  // Write the keys and values of the rows whose first layer without them is `layer`, from there on.
  void map_shallow_rows(int layer, ThreadBuffers& local) {
    for (const MappedRows& mapped : mapped_) {
      if (mapped.maps->depth != layer) continue;
      const int64_t rows = mapped.rows.size();
      float* features = local.line.reserve(hidden_);
      pool_.share(rows, pool_.grain(rows), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const float* x = b_.residual.get() + mapped.rows[i] * hidden_;
          const float factor = inverse_rms(x, model_.hidden, kFeatureEps);
          for (int64_t d = 0; d < model_.hidden; ++d) features[d] = x[d] * factor;
          quantise(features, model_.hidden, b_.features, i);
          forget_queries(layer, mapped.rows[i]);
        }
      });
      pool_.barrier();
      const int64_t parts = (rows + kCachedRows - 1) / kCachedRows;
      const int64_t units = (int64_t)(model_.layers - layer) * model_.groups / span_;
      pool_.share(units * parts, 1, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i)
          map_unit(mapped, i / parts, i % parts * kCachedRows, local);
      });
      pool_.barrier();
    }
  }

 private:
  static constexpr float kFeatureEps = 1e-6f;

  // The shallow rows of the segments with the same maps.
  struct MappedRows {
    const TrimKVMaps* maps;
    std::vector<int32_t> rows;
  };

  void add_rows(int segment) {
    const TrimKVMaps* maps = batch_.maps[segment];
    MappedRows* found = nullptr;
    for (MappedRows& mapped : mapped_)
      if (mapped.maps == maps) found = &mapped;
    if (!found) {
      mapped_.push_back({maps, {}});
      found = &mapped_.back();
    }
    for (int r = batch_.row_offsets[segment]; r < batch_.row_offsets[segment + 1]; ++r)
      if (batch_.shallow[r]) found->rows.push_back(r);
  }

  // A shallow row has no queries from `first` on: in place of those of an earlier token there are
  // zeros, however the prompt is cut.
  void forget_queries(int first, int64_t row) const {
    for (int layer = first; layer < model_.layers; ++layer)
      if (float* out = recorded_queries(layer, row)) memset(out, 0, recorded() * sizeof(float));
  }

  // Write keys and values of one layer and span of KV groups, for at most kCachedRows rows from
  // `first` on.
  void map_unit(const MappedRows& mapped, int64_t unit, int64_t first, ThreadBuffers& local) {
    const int layer = mapped.maps->depth + (int)(unit * span_ / model_.groups);
    const int group = (int)(unit * span_ % model_.groups);
    const TrimMatrix& matrix = mapped.maps->matrix;
    const int64_t width = span_ * group_width(), blocks = width / 16;
    float* outputs = local.values.reserve((kCachedRows + 1) * width);
    float* key = outputs + kCachedRows * width;
    int32_t* kept = local.rows.reserve(kCachedRows);
    int count = 0;
    for (int64_t i = first; i < (int64_t)mapped.rows.size() && i < first + kCachedRows; ++i) {
      const int segment = b_.segment_of_row.get()[mapped.rows[i]];
      if (group >= this->width(segment, layer, kAttention)) continue;
      kept[count++] = (int32_t)i;
      set_to_bias(matrix, unit * blocks, blocks, outputs + (i - first) * width);
    }
    multiply(matrix, unit * blocks, (unit + 1) * blocks, b_.features, {kept, nullptr, count},
             [&](int32_t i) { return outputs + (i - first) * width; });
    for (int i = 0; i < count; ++i) {
      const float* output = outputs + (kept[i] - first) * width;
      const int64_t row = mapped.rows[kept[i]];
      const float wide[2] = {0, key_factor(layer, output)};
      for (int g = group; g < group + span_; ++g, output += group_width()) {
        norm_and_rotate_head(model_.layer[layer], row, g, model_.queries, wide, output, key);
        cache_head(layer, row, g, key, output + model_.head_dim);
      }
    }
  }

  // Return the outputs of maps for one layer and KV group: key, value, padding.
  int64_t group_width() const { return round_up(2 * model_.head_dim, 16); }

  // Return what a layer's wide norm, if it has one, multiplies mapped keys by.
  float key_factor(int layer, const float* outputs) const {
    if (!model_.layer[layer].wide_qk_norm) return 0;
    float squares = 0;
    for (int g = 0; g < model_.groups; ++g)
      squares += sum_squares(outputs + g * group_width(), model_.head_dim);
    return wide_factor(squares, (int64_t)model_.groups * model_.head_dim);
  }

  std::vector<MappedRows> mapped_;
  int span_ = 1;  // KV groups that are mapped together
};
