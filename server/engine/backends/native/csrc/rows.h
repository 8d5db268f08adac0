// What both kinds of sub-blocks of a step share: which rows take part, their norms, and how results
// join the residual stream. Included once for each instruction set.
//
// What a thread does for a row does not depend on which thread it is, or on the other rows.

enum Part { kAttention, kMlp };

class Rows {
 public:
  Rows(const TrimModel& model, const TrimBatch& batch, Buffers& buffers, Pool& pool)
      : model_(model), batch_(batch), b_(buffers), pool_(pool), hidden_(up(model.hidden, 16)) {
    const int64_t rows = batch.rows;
    b_.x.fit(rows * hidden_);
    b_.y.fit(rows * hidden_);
    b_.normed.fit(rows, model.hidden);
    b_.owner.fit(rows);
    rank_ = 0;
    for (int s = 0; s < batch.segments; ++s) {
      for (int r = batch.first[s]; r < batch.first[s + 1]; ++r) b_.owner.get()[r] = s;
      for (int i = 0; i < model.layers; ++i)
        for (const TrimOwn* own : {batch.variants[s]->attention[i], batch.variants[s]->mlp[i]}) {
          if (!own) continue;
          if (own->outer) rank_ = most(rank_, own->outer->inputs);
          if (!own->entry || !own->entry->outer) continue;
          entries_ = true;
          rank_ = most(rank_, own->entry->outer->inputs);
        }
    }
    b_.inner.fit(rows, rank_);
    b_.entered.fit(rows, rank_);
  }

 protected:
  void norm(const float* x, const float* weight, int64_t width, float* out) const {
    v8f squares = splat(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) squares = Isa::fma(load8(x + i), load8(x + i), squares);
    for (; i < width; ++i) rest += x[i] * x[i];
    const float factor = 1.0f / sqrtf((sum8(squares) + rest) / width + model_.eps);
    for (i = 0; i + 8 <= width; i += 8)
      store8(out + i, load8(x + i) * factor * load8(weight + i));
    for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
  }

  // The first of a segment's rows whose result is read.
  int first_read(int segment) const { return batch_.first[segment + 1] - batch_.read[segment]; }

  // Rows by what they have of a sub-block, the widest first; whole segments, in batch order. With
  // `read` only rows whose result is read.
  void members(int layer, Part part, Members& out, bool read = false) const {
    out.row.fit(batch_.rows);
    out.width.fit(batch_.rows);
    out.count = 0;
    out.runs.clear();
    int below = INT32_MAX;
    for (;;) {
      int widest = 0;
      for (int s = 0; s < batch_.segments; ++s) {
        const int width = units(s, layer, part);
        if (width < below && width > widest) widest = width;
      }
      if (widest == 0) return;
      for (int s = 0; s < batch_.segments; ++s) {
        if (units(s, layer, part) != widest) continue;
        const TrimVariant& v = *batch_.variants[s];
        const TrimOwn* own = part == kAttention ? v.attention[layer] : v.mlp[layer];
        if (out.runs.empty() || out.runs.back().own != own)
          out.runs.push_back({out.count, out.count, own});
        for (int r = read ? first_read(s) : batch_.first[s]; r < batch_.first[s + 1]; ++r) {
          out.row.get()[out.count] = r;
          out.width.get()[out.count++] = widest;
        }
        out.runs.back().last = out.count;
      }
      below = widest;
    }
  }

  bool last(int layer) const { return layer == model_.layers - 1; }

  int units(int segment, int layer, Part part) const {
    const TrimVariant& v = *batch_.variants[segment];
    return part == kAttention ? v.groups[layer] : v.ffn[layer];
  }

  const TrimOwn* own(int64_t row, int layer, Part part) const {
    const TrimVariant& v = *batch_.variants[b_.owner.get()[row]];
    return part == kAttention ? v.attention[layer] : v.mlp[layer];
  }

  const TrimEntry* entry(int64_t row, int layer, Part part) const {
    const TrimOwn* mine = own(row, layer, part);
    return mine ? mine->entry : nullptr;
  }

  // With few rows every thread prepares all of them for itself, which is quicker than to meet.
  static constexpr int kFew = 3;

  template <class Body>
  void each_row(const Members& who, const Body& body) {
    if (who.count <= kFew) {
      body(0, who.count);
      return;
    }
    pool_.share(who.count, pool_.grain(who.count), body);
    pool_.barrier();
  }

  Quantised& prepared(const Members& who, Quantised& shared, Quantised& mine) const {
    if (who.count > kFew) return shared;
    mine.fit(batch_.rows, shared.inputs);
    return mine;
  }

  // What a sub-block's input projection reads, and the narrow products of entries.
  struct Inputs {
    const Quantised &normed, &entered;
  };

  Inputs normed(int index, Part part, const Members& who, const float* weight, Local& local) {
    float* buffer = local.line.fit(most(hidden_, kRows * up(rank_, 16)));
    Quantised& out = prepared(who, b_.normed, local.normed);
    Quantised& entered = prepared(who, b_.entered, local.entered);
    each_row(who, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int32_t r = who.row.get()[i];
        const TrimEntry* mine = entry(r, index, part);
        norm(b_.x.get() + r * hidden_, mine ? mine->norm : weight, model_.hidden, buffer);
        quantise(buffer, model_.hidden, out, r);
      }
      if (entries_)
        narrow_rows(who, nullptr, from, to, out, entered, buffer, [](const TrimOwn& own) {
          return own.entry ? own.entry->inner : nullptr;
        });
    });
    return {out, entered};
  }

  // Calls `body(matrix, first, last)` for at most kRows members of `from..to` at a time, all with
  // the same `matrix(own)`; not for those where it is null.
  template <class Find, class Body>
  static void by_matrix(const Members& who, int64_t from, int64_t to, const Find& matrix,
                        const Body& body) {
    for (const Run& run : who.runs) {
      const TrimMatrix* shared = run.own ? matrix(*run.own) : nullptr;
      if (!shared) continue;
      const int64_t end = run.last < to ? run.last : to;
      for (int64_t first = most(run.first, from); first < end; first += kRows)
        body(*shared, first, first + kRows < end ? first + kRows : end);
    }
  }

  // The narrow products of rows `from..to`. `line` holds kRows times the rank.
  template <class Find>
  static void narrow_rows(const Members& who, const int32_t* widths, int64_t from, int64_t to,
                          const Quantised& inputs, Quantised& out, float* line,
                          const Find& matrix) {
    const int32_t* rows = who.row.get();
    by_matrix(who, from, to, matrix, [&](const TrimMatrix& m, int64_t first, int64_t last) {
      const int64_t rank = up(m.outputs, 16);
      memset(line, 0, (last - first) * rank * sizeof(float));
      Tile tile;
      for (int64_t i = first; i < last; ++i) {
        tile.input(i - first, inputs, rows[i]);
        tile.out[i - first] = line + (i - first) * rank;
      }
      const int64_t reach = widths ? widths[first] : m.inputs;
      tile.product(last - first, m, 0, rank / 16, 1, 0, up(reach, 32) / 32);
      for (int64_t i = first; i < last; ++i)
        quantise(line + (i - first) * rank, m.outputs, out, rows[i]);
    });
  }

  // place(i)[0..16) += output block `block` of what member i has of its own, for `from..to`.
  template <class Find, class Place>
  static void widen_rows(const Members& who, int64_t from, int64_t to, const Quantised& inner,
                         int64_t block, const Find& matrix, const Place& place) {
    by_matrix(who, from, to, matrix, [&](const TrimMatrix& m, int64_t first, int64_t last) {
      if (16 * block >= m.outputs) return;
      Tile tile;
      for (int64_t i = first; i < last; ++i) {
        tile.input(i - first, inner, who.row.get()[i]);
        tile.out[i - first] = place(i);
      }
      tile.product(last - first, m, block, 1, 1, 0, Packed::input_blocks(m));
    });
  }

  // The same of what entries add to the input projection.
  template <class Place>
  void enter(const Members& who, int64_t from, int64_t to, const Inputs& inputs, int64_t block,
             const Place& place) const {
    if (!entries_) return;
    const auto outer = [](const TrimOwn& own) { return own.entry ? own.entry->outer : nullptr; };
    widen_rows(who, from, to, inputs.entered, block, outer, place);
  }

  // x += out_norm(matrix(inputs) + own part), and the constants of rows that skip the block.
  void join_residual(int index, Part part, const TrimMatrix& matrix, const Quantised& inputs,
                     const float* out_norm, Local& local) {
    const Members& who = local.members;
    float* target = (out_norm ? b_.y : b_.x).get();
    const bool owned = inner_products(index, part, inputs, who, local);
    const int64_t blocks = hidden_ / 16;
    int32_t* rows = local.rows.fit(batch_.rows);
    int32_t* widths = local.widths.fit(batch_.rows);
    int shared = 0;
    for (int i = 0; i < who.count; ++i) {
      const TrimOwn* mine = own(who.row.get()[i], index, part);
      if (mine && mine->replaces) continue;
      rows[shared] = who.row.get()[i];
      widths[shared++] = who.width.get()[i];
    }
    // Narrow ranges would be read in pieces too short for the processor to see a stream.
    const int64_t grain =
        streamed(matrix, shared) ? (blocks + pool_.size() - 1) / pool_.size() : pool_.grain(blocks);
    pool_.share(blocks, grain, [&](int64_t from, int64_t to) {
      const int64_t begin = 16 * from;
      const auto place = [&](int32_t row) { return target + row * hidden_ + begin; };
      for (int i = 0; i < who.count; ++i) {
        const int32_t r = who.row.get()[i];
        if (out_norm) memset(place(r), 0, 16 * (to - from) * sizeof(float));
        const TrimOwn* mine = own(r, index, part);
        if (mine && mine->replaces)
          output_blocks(*mine->inner, from, to, inputs, {&r, &who.width.get()[i], 1}, place);
        else if (matrix.bias)
          add(place(r), matrix.bias, begin, 16 * to);
      }
      output_blocks(matrix, from, to, inputs, {rows, widths, shared}, place);
      if (owned) own_parts(index, part, who, target, begin, 16 * to);
    });
    pool_.barrier();
    if (out_norm && who.count) {
      float* buffer = local.line.fit(hidden_);
      pool_.share(who.count, pool_.grain(who.count), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const int64_t r = who.row.get()[i];
          norm(b_.y.get() + r * hidden_, out_norm, model_.hidden, buffer);
          for (int64_t d = 0; d < model_.hidden; ++d) b_.x.get()[r * hidden_ + d] += buffer[d];
        }
      });
      pool_.barrier();
    }
  }

  void add(float* out, const float* values, int64_t begin, int64_t end) const {
    if (end > model_.hidden) end = model_.hidden;
    for (int64_t i = begin; i < end; ++i) out[i - begin] += values[i];
  }

  // The narrow products of corrections. Says whether any row has an own part.
  bool inner_products(int index, Part part, const Quantised& inputs, const Members& who,
                      Local& local) {
    bool owned = false, ranked = false;
    for (int s = 0; s < batch_.segments; ++s) {
      const TrimVariant& v = *batch_.variants[s];
      const TrimOwn* mine = part == kAttention ? v.attention[index] : v.mlp[index];
      if (!mine) continue;
      owned = true;
      ranked = ranked || mine->outer;
    }
    if (!ranked) return owned;
    float* line = local.line.fit(kRows * up(rank_, 16));
    const int64_t each = (who.count + pool_.size() - 1) / pool_.size();
    pool_.share(who.count, each < kRows ? each : kRows, [&](int64_t from, int64_t to) {
      narrow_rows(who, who.width.get(), from, to, inputs, b_.inner, line,
                  [](const TrimOwn& own) { return own.outer ? own.inner : nullptr; });
    });
    pool_.barrier();
    return owned;
  }

  void own_parts(int index, Part part, const Members& who, float* target, int64_t begin,
                 int64_t end) {
    for (int64_t r = 0; r < batch_.rows; ++r) {
      const TrimOwn* mine = own(r, index, part);
      if (!mine || !mine->bias) continue;
      const bool member = units(b_.owner.get()[r], index, part) > 0;
      add((member ? target : b_.x.get()) + r * hidden_ + begin, mine->bias, begin, end);
    }
    const int32_t* rows = who.row.get();
    for (int64_t at = begin; at < end; at += 16)
      widen_rows(who, 0, who.count, b_.inner, at / 16, [](const TrimOwn& own) { return own.outer; },
                 [&](int64_t i) { return target + rows[i] * hidden_ + at; });
  }

  const TrimModel& model_;
  const TrimBatch& batch_;
  Buffers& b_;
  Pool& pool_;
  const int64_t hidden_;

 private:
  int64_t rank_;          // the largest of low ranks
  bool entries_ = false;  // any with low ranks
};
