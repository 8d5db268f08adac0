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
    entries_ = false;
    for (int s = 0; s < batch.segments; ++s) {
      for (int r = batch.first[s]; r < batch.first[s + 1]; ++r) b_.owner.get()[r] = s;
      for (int i = 0; i < model.layers; ++i)
        for (const TrimOwn* own : {batch.variants[s]->attention[i], batch.variants[s]->mlp[i]}) {
          if (!own) continue;
          if (own->outer && up(own->rank, 16) > rank_) rank_ = up(own->rank, 16);
          if (!own->entry || !own->entry->rank) continue;
          entries_ = true;
          if (up(own->entry->rank, 16) > rank_) rank_ = up(own->entry->rank, 16);
        }
    }
    b_.inner.fit(rows * rank_);
    b_.entered.fit(rows * rank_);
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

  // Rows by what they have of a sub-block, the widest first; whole segments, in batch order.
  void members(int layer, Part part, Members& out) const {
    out.row.fit(batch_.rows);
    out.width.fit(batch_.rows);
    out.count = 0;
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
        for (int r = batch_.first[s]; r < batch_.first[s + 1]; ++r) {
          out.row.get()[out.count] = r;
          out.width.get()[out.count++] = widest;
        }
      }
      below = widest;
    }
  }

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

  // What a sub-block's input projection reads, and the narrow products of entries, [rows][rank].
  struct Inputs {
    const Quantised& normed;
    const float* entered;
  };

  Inputs normed(int index, Part part, const Members& who, const float* weight, Local& local) {
    float* buffer = local.line.fit(hidden_);
    Quantised& out = prepared(who, b_.normed, local.normed);
    float* entered =
        who.count > kFew ? b_.entered.get() : local.entered.fit(batch_.rows * rank_);
    each_row(who, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int32_t r = who.row.get()[i];
        const TrimEntry* mine = entry(r, index, part);
        norm(b_.x.get() + r * hidden_, mine ? mine->norm : weight, model_.hidden, buffer);
        quantise(buffer, model_.hidden, out, r);
      }
      if (entries_)
        narrow_rows(who.row.get(), nullptr, from, to, out, entered, [&](int32_t row) {
          const TrimEntry* mine = entry(row, index, part);
          return mine && mine->rank ? mine->inner : nullptr;
        });
    });
    return {out, entered};
  }

  // out[row][0..rank) = matrix(inputs) of rows `from..to`, those with the same matrix side by side;
  // the rest up to a multiple of 16 is 0. `matrix(row)` is null where there is none.
  template <class Find>
  void narrow_rows(const int32_t* rows, const int32_t* widths, int64_t from, int64_t to,
                   const Quantised& inputs, float* out, const Find& matrix) const {
    const auto place = [&](int32_t row) { return out + row * rank_; };
    for (int64_t next; from < to; from = next) {
      const TrimMatrix* shared = matrix(rows[from]);
      for (next = from + 1; next < to && matrix(rows[next]) == shared;) ++next;
      if (!shared) continue;
      const int64_t rank = up(shared->outputs, 16);
      for (int64_t i = from; i < next; ++i) memset(place(rows[i]), 0, rank * sizeof(float));
      output_blocks(*shared, 0, rank / 16, inputs, rows + from, widths ? widths + from : nullptr,
                    (int)(next - from), place);
    }
  }

  // out[0..16) += output block `block` of what a row's entry adds to the input projection.
  void enter(int index, Part part, int64_t row, const float* entered, int64_t block,
             float* out) const {
    const TrimEntry* mine = entries_ ? entry(row, index, part) : nullptr;
    if (mine && 16 * block < mine->features)
      widen(entered + row * rank_, mine->rank, mine->outer + 16 * block * mine->rank, out);
  }

  // out[0..16) += one block of outer(inner).
  TRIM_INLINE void widen(const float* inner, int rank, const uint16_t* outer, float* out) {
    // Two sums, so that no product waits for the one before.
    Isa::Line even = Isa::read(out), odd = Isa::zeros();
    int k = 0;
    for (; k + 2 <= rank; k += 2, outer += 32) {
      even = Isa::plus(even, inner[k], Isa::read(outer));
      odd = Isa::plus(odd, inner[k + 1], Isa::read(outer + 16));
    }
    if (k < rank) even = Isa::plus(even, inner[k], Isa::read(outer));
    Isa::write(out, Isa::plus(even, 1.0f, odd));
  }

  // x += out_norm(matrix(inputs) + own part), and the constants of rows that skip the block.
  void join_residual(int index, Part part, const TrimMatrix& matrix, const Quantised& inputs,
                     const float* out_norm, Local& local) {
    const Members& who = local.members;
    float* target = (out_norm ? b_.y : b_.x).get();
    const bool owned = inner_products(index, part, inputs, who);
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
    pool_.share(blocks, pool_.grain(blocks), [&](int64_t from, int64_t to) {
      const int64_t begin = 16 * from;
      const auto place = [&](int32_t row) { return target + row * hidden_ + begin; };
      for (int i = 0; i < who.count; ++i) {
        const int32_t r = who.row.get()[i];
        if (out_norm) memset(place(r), 0, 16 * (to - from) * sizeof(float));
        const TrimOwn* mine = own(r, index, part);
        if (mine && mine->replaces)
          output_blocks(*mine->inner, from, to, inputs, &r, &who.width.get()[i], 1, place);
        else if (matrix.bias)
          add(place(r), matrix.bias, begin, 16 * to);
      }
      output_blocks(matrix, from, to, inputs, rows, widths, shared, place);
      if (owned) own_parts(index, part, target, begin, 16 * to);
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

  // The narrow products of corrections, [rows][rank]. Says whether any row has an own part.
  bool inner_products(int index, Part part, const Quantised& inputs, const Members& who) {
    bool owned = false, ranked = false;
    for (int s = 0; s < batch_.segments; ++s) {
      const TrimVariant& v = *batch_.variants[s];
      const TrimOwn* mine = part == kAttention ? v.attention[index] : v.mlp[index];
      if (!mine) continue;
      owned = true;
      ranked = ranked || mine->outer;
    }
    if (!ranked) return owned;
    const int64_t each = (who.count + pool_.size() - 1) / pool_.size();
    pool_.share(who.count, each < Isa::kRows ? each : Isa::kRows, [&](int64_t from, int64_t to) {
      narrow_rows(who.row.get(), who.width.get(), from, to, inputs, b_.inner.get(),
                  [&](int32_t row) {
                    const TrimOwn* mine = own(row, index, part);
                    return mine && mine->outer ? mine->inner : nullptr;
                  });
    });
    pool_.barrier();
    return owned;
  }

  void own_parts(int index, Part part, float* target, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < batch_.rows; ++r) {
      const TrimOwn* mine = own(r, index, part);
      if (!mine) continue;
      const bool member = units(b_.owner.get()[r], index, part) > 0;
      float* out = (member ? target : b_.x.get()) + r * hidden_ + begin;
      if (mine->bias) add(out, mine->bias, begin, end);
      if (!member || !mine->outer) continue;
      const uint16_t* outer = mine->outer + begin * mine->rank;
      for (int64_t i = 0; i < end - begin; i += 16)
        widen(b_.inner.get() + r * rank_, mine->rank, outer + i * mine->rank, out + i);
    }
  }

  const TrimModel& model_;
  const TrimBatch& batch_;
  Buffers& b_;
  Pool& pool_;
  const int64_t hidden_;

 private:
  int64_t rank_;
  bool entries_;  // any with a rank
};
