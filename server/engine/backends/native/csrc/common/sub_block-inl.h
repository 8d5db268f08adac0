// The parts that attention and MLP have in common: which rows are active, the norm before the
// projections, and the projection back to the residual stream.
//
//   normed   = rms_norm(x) * weight
//   x       += scale * out_norm(matrix(inputs) + outer(inner(inputs)) + bias)
//
// Both norms, and the terms of a correction (see `TrimCorrection`), are optional.
//
// The result for a row does not depend on which thread computes it, nor on the other rows.

enum BlockKind { kAttention, kMlp };

class SubBlock {
 public:
  SubBlock(const TrimModel& model, const TrimBatch& batch, Buffers& buffers, ThreadPool& pool)
      : model_(model),
        batch_(batch),
        b_(buffers),
        pool_(pool),
        hidden_(round_up(model.hidden, 16)) {
    const int64_t rows = batch.rows;
    b_.residual.reserve(rows * hidden_);
    b_.block_output.reserve(rows * hidden_);
    b_.normed.resize(rows, model.hidden);
    b_.segment_of_row.reserve(rows);
    rank_ = 0;
    for (int s = 0; s < batch.segments; ++s) {
      for (int r = batch.row_offsets[s]; r < batch.row_offsets[s + 1]; ++r)
        b_.segment_of_row.get()[r] = s;
      for (int i = 0; i < model.layers; ++i)
        for (const TrimCorrection* c :
             {batch.variants[s]->attention[i], batch.variants[s]->mlp[i]}) {
          if (!c) continue;
          if (c->outer) rank_ = max_int64(rank_, c->outer->inputs);
          if (!c->input || !c->input->outer) continue;
          has_input_low_rank_ = true;
          rank_ = max_int64(rank_, c->input->outer->inputs);
        }
    }
    b_.low_rank.resize(rows, rank_);
    b_.input_low_rank.resize(rows, rank_);
  }

 protected:
  // out[0..width) = rms_norm(x) * weight.
  void norm(const float* x, const float* weight, int64_t width, float* out) const {
    apply_weight(x, inverse_rms(x, width, model_.eps), weight, width, out);
  }

  // Return the first row of a segment whose result is needed.
  int first_output(int segment) const {
    return batch_.row_offsets[segment + 1] - batch_.output_rows[segment];
  }

  // Return whether a segment's shallow rows do not run through a layer.
  bool has_ended_rows(int segment, int layer) const {
    return batch_.maps && batch_.maps[segment] && layer >= batch_.maps[segment]->depth;
  }

  // Find the rows that do not skip a sub-block, the widest first, segment by segment and otherwise
  // in the order of the batch. With `outputs_only`, only rows whose result is needed.
  void find_active_rows(int layer, BlockKind kind, ActiveRows& out,
                        bool outputs_only = false) const {
    out.row.reserve(batch_.rows);
    out.width.reserve(batch_.rows);
    out.count = 0;
    out.runs.clear();
    int below = INT32_MAX;
    for (;;) {
      int widest = 0;
      for (int s = 0; s < batch_.segments; ++s) {
        const int units = width(s, layer, kind);
        if (units < below && units > widest) widest = units;
      }
      if (widest == 0) return;
      for (int s = 0; s < batch_.segments; ++s) {
        if (width(s, layer, kind) != widest) continue;
        const TrimVariant& v = *batch_.variants[s];
        const TrimCorrection* correction = kind == kAttention ? v.attention[layer] : v.mlp[layer];
        if (out.runs.empty() || out.runs.back().correction != correction)
          out.runs.push_back({out.count, out.count, correction});
        const bool ended = has_ended_rows(s, layer);
        for (int r = outputs_only ? first_output(s) : batch_.row_offsets[s];
             r < batch_.row_offsets[s + 1]; ++r) {
          if (ended && batch_.shallow[r]) continue;
          out.row.get()[out.count] = r;
          out.width.get()[out.count++] = widest;
        }
        out.runs.back().last = out.count;
      }
      below = widest;
    }
  }

  bool is_last(int layer) const { return layer == model_.layers - 1; }

  // Return how many KV groups or neurons a segment's variant keeps of a sub-block.
  int width(int segment, int layer, BlockKind kind) const {
    const TrimVariant& v = *batch_.variants[segment];
    return kind == kAttention ? v.groups[layer] : v.ffn[layer];
  }

  const TrimCorrection* correction(int64_t row, int layer, BlockKind kind) const {
    const TrimVariant& v = *batch_.variants[b_.segment_of_row.get()[row]];
    return kind == kAttention ? v.attention[layer] : v.mlp[layer];
  }

  const TrimInputCorrection* input_correction(int64_t row, int layer, BlockKind kind) const {
    const TrimCorrection* found = correction(row, layer, kind);
    return found ? found->input : nullptr;
  }

  // With so few rows every thread prepares all of them, which is faster than a barrier.
  static constexpr int kUnsharedRows = 3;

  // Call `body(from, to)` for ranges of the active rows: all of them on each thread if they are
  // few, else shared between the threads.
  template <class Body>
  void for_active_rows(const ActiveRows& active, const Body& body) {
    if (active.count <= kUnsharedRows) {
      body(0, active.count);
      return;
    }
    pool_.share(active.count, pool_.grain(active.count), body);
    pool_.barrier();
  }

  // Return where `for_active_rows` writes: the shared memory, or the thread's own.
  QuantisedRows& destination(const ActiveRows& active, QuantisedRows& shared,
                             QuantisedRows& unshared) const {
    if (active.count > kUnsharedRows) return shared;
    unshared.resize(batch_.rows, shared.inputs);
    return unshared;
  }

  // The inputs of a sub-block's first projection, and the inner products of its input corrections.
  struct ProjectionInputs {
    const QuantisedRows &normed, &low_rank;
  };

  // The inputs of a sub-block whose norm has this weight; null: it has no norm.
  ProjectionInputs normalise(int index, BlockKind kind, const ActiveRows& active,
                             const float* weight, ThreadBuffers& local) {
    float* buffer = local.line.reserve(max_int64(hidden_, kTileRows * round_up(rank_, 16)));
    QuantisedRows& out = destination(active, b_.normed, local.normed);
    QuantisedRows& low_rank = destination(active, b_.input_low_rank, local.input_low_rank);
    for_active_rows(active, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int32_t r = active.row.get()[i];
        const TrimInputCorrection* found = input_correction(r, index, kind);
        const float* x = b_.residual.get() + r * hidden_;
        if (weight)
          norm(x, found ? found->norm : weight, model_.hidden, buffer);
        else if (found)
          apply_weight(x, 1.0f, found->norm, model_.hidden, buffer);
        quantise(weight || found ? buffer : x, model_.hidden, out, r);
      }
      if (has_input_low_rank_)
        multiply_inner(active, nullptr, from, to, out, low_rank, buffer,
                       [](const TrimCorrection& c) { return c.input ? c.input->inner : nullptr; });
    });
    return {out, low_rank};
  }

  // place(i)[0..16) += output block `block` of the input corrections' low-rank product.
  template <class Place>
  void add_input_correction(const ActiveRows& active, int64_t from, int64_t to,
                            const ProjectionInputs& inputs, int64_t block,
                            const Place& place) const {
    if (!has_input_low_rank_) return;
    const auto outer = [](const TrimCorrection& c) { return c.input ? c.input->outer : nullptr; };
    add_outer(active, from, to, inputs.low_rank, block, outer, place);
  }

  // x += scale * out_norm(matrix(inputs) + correction). Rows that skip the sub-block get the scaled
  // bias of their correction only.
  void add_to_residual(int index, BlockKind kind, const TrimMatrix& matrix,
                       const QuantisedRows& inputs, const float* out_norm, ThreadBuffers& local) {
    const ActiveRows& active = local.active;
    const bool apart = out_norm || model_.residual_scale != 1.0f;
    float* target = (apart ? b_.block_output : b_.residual).get();
    const bool corrected = compute_inner(index, kind, inputs, active, local);
    const int64_t blocks = hidden_ / 16;
    int32_t* rows = local.rows.reserve(batch_.rows);
    int32_t* widths = local.widths.reserve(batch_.rows);
    int shared = 0;
    for (int i = 0; i < active.count; ++i) {
      const TrimCorrection* own = correction(active.row.get()[i], index, kind);
      if (own && own->replaces) continue;
      rows[shared] = active.row.get()[i];
      widths[shared++] = active.width.get()[i];
    }
    // Long ranges, so that the processor's prefetcher recognises a stream.
    const int64_t grain = is_streamed(matrix, shared) ? (blocks + pool_.size() - 1) / pool_.size()
                                                      : pool_.grain(blocks);
    pool_.share(blocks, grain, [&](int64_t from, int64_t to) {
      const int64_t begin = 16 * from;
      const auto place = [&](int32_t row) { return target + row * hidden_ + begin; };
      for (int i = 0; i < active.count; ++i) {
        const int32_t r = active.row.get()[i];
        if (apart) memset(place(r), 0, 16 * (to - from) * sizeof(float));
        const TrimCorrection* own = correction(r, index, kind);
        if (own && own->replaces)
          multiply(*own->inner, from, to, inputs, {&r, &active.width.get()[i], 1}, place);
        else if (matrix.bias)
          add(place(r), matrix.bias, begin, 16 * to);
      }
      multiply(matrix, from, to, inputs, {rows, widths, shared}, place);
      if (corrected) add_corrections(index, kind, active, target, begin, 16 * to);
    });
    pool_.barrier();
    if (apart && active.count) {
      float* buffer = local.line.reserve(hidden_);
      pool_.share(active.count, pool_.grain(active.count), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const int64_t r = active.row.get()[i];
          const float* output = b_.block_output.get() + r * hidden_;
          if (out_norm) {
            norm(output, out_norm, model_.hidden, buffer);
            output = buffer;
          }
          add(b_.residual.get() + r * hidden_, output, 0, model_.hidden, model_.residual_scale);
        }
      });
      pool_.barrier();
    }
  }

  // out[0..) += factor * values[begin..end).
  void add(float* out, const float* values, int64_t begin, int64_t end, float factor = 1) const {
    if (end > model_.hidden) end = model_.hidden;
    for (int64_t i = begin; i < end; ++i) out[i - begin] += factor * values[i];
  }

  // Compute the inner products of corrections. Return whether any row has a correction.
  bool compute_inner(int index, BlockKind kind, const QuantisedRows& inputs,
                     const ActiveRows& active, ThreadBuffers& local) {
    bool corrected = false, low_rank = false;
    for (int s = 0; s < batch_.segments; ++s) {
      const TrimVariant& v = *batch_.variants[s];
      const TrimCorrection* own = kind == kAttention ? v.attention[index] : v.mlp[index];
      if (!own) continue;
      corrected = true;
      low_rank = low_rank || own->outer;
    }
    if (!low_rank) return corrected;
    float* line = local.line.reserve(kTileRows * round_up(rank_, 16));
    const int64_t each = (active.count + pool_.size() - 1) / pool_.size();
    pool_.share(active.count, each < kTileRows ? each : kTileRows, [&](int64_t from, int64_t to) {
      multiply_inner(active, active.width.get(), from, to, inputs, b_.low_rank, line,
                     [](const TrimCorrection& c) { return c.outer ? c.inner : nullptr; });
    });
    pool_.barrier();
    return corrected;
  }

  // target += outer(inner) + bias, for outputs `begin..end`.
  void add_corrections(int index, BlockKind kind, const ActiveRows& active, float* target,
                       int64_t begin, int64_t end) {
    for (int64_t r = 0; r < batch_.rows; ++r) {
      const TrimCorrection* own = correction(r, index, kind);
      if (!own || !own->bias) continue;
      const int segment = b_.segment_of_row.get()[r];
      if (has_ended_rows(segment, index) && batch_.shallow[r]) continue;
      if (width(segment, index, kind) > 0)
        add(target + r * hidden_ + begin, own->bias, begin, end);
      else
        add(b_.residual.get() + r * hidden_ + begin, own->bias, begin, end,
            model_.residual_scale);
    }
    const int32_t* rows = active.row.get();
    for (int64_t at = begin; at < end; at += 16)
      add_outer(
          active, 0, active.count, b_.low_rank, at / 16,
          [](const TrimCorrection& c) { return c.outer; },
          [&](int64_t i) { return target + rows[i] * hidden_ + at; });
  }

  const TrimModel& model_;
  const TrimBatch& batch_;
  Buffers& b_;
  ThreadPool& pool_;
  const int64_t hidden_;

 private:
  int64_t rank_;                     // the largest rank of all corrections
  bool has_input_low_rank_ = false;  // of any input correction
};
