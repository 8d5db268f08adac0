// The output of a matrix with the highest value. Included once for each instruction set.
//
// With a preview not the whole matrix is read: a coarse copy says of each output about how high it
// is, and only blocks of outputs that may hold the highest are then computed, as `project` does it.
// The winner is the one that it would give either way.

TRIM_INLINE void raise(Highest& best, float value, int32_t output) {
  if (value > best.value || (value == best.value && output < best.output)) best = {value, output};
}

class Best {
 public:
  Best(const TrimMatrix& matrix, const TrimPreview* preview, int32_t rows, Buffers& buffers,
       Pool& pool)
      : matrix_(matrix),
        preview_(preview),
        rows_(rows),
        blocks_(up(matrix.outputs, 16) / 16),
        b_(buffers),
        pool_(pool) {
    b_.normed.fit(rows, matrix.inputs);
    b_.owner.fit(rows);
    b_.y.fit(rows * 16 * blocks_);
    b_.x.fit(rows);
  }

  void run(const float* x, int32_t* best) {
    pool_.run([&](int thread) {
      Local& local = b_.local[thread];
      local.rough.assign(rows_, {-INFINITY, INT32_MAX});
      local.highest.assign(rows_, {-INFINITY, INT32_MAX});
      pool_.share(rows_, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) prepare(x + r * matrix_.inputs, r);
      });
      pool_.barrier();
      pool_.share(blocks_, pool_.grain(blocks_),
                  [&](int64_t from, int64_t to) { look(from, to, local); });
      if (!preview_) return;
      pool_.barrier();
      float* least = local.line.fit(rows_);
      for (int64_t r = 0; r < rows_; ++r) least[r] = value_of_roughly_highest(r);
      pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
        for (int64_t b = from; b < to; ++b)
          for (int64_t r = 0; r < rows_; ++r)
            if (may_reach(r, b, least[r])) compute(r, b, local.highest[r]);
      });
    });
    for (int64_t r = 0; r < rows_; ++r) {
      const Highest found = highest(preview_ ? &Local::highest : &Local::rough, r);
      best[r] = found.output == INT32_MAX ? 0 : found.output;  // nothing is higher than no number
    }
  }

 private:
  float* rough(int64_t row) const { return b_.y.get() + row * 16 * blocks_; }

  // Of what all threads have found.
  Highest highest(std::vector<Highest> Local::*by, int64_t row) const {
    Highest found{-INFINITY, INT32_MAX};
    for (int t = 0; t < pool_.size(); ++t) {
      const Highest& one = (b_.local[t].*by)[row];
      raise(found, one.value, one.output);
    }
    return found;
  }

  void prepare(const float* x, int64_t row) {
    b_.owner.get()[row] = (int32_t)row;
    quantise(x, matrix_.inputs, b_.normed, row);
    if (!preview_) return;
    float doubt = 0;
    for (int64_t k = 0; 32 * k < matrix_.inputs; ++k) {
      float squares = 0;
      for (int64_t i = 32 * k; i < 32 * (k + 1) && i < matrix_.inputs; ++i) squares += x[i] * x[i];
      doubt += preview_->doubt[k] * squares;
    }
    b_.x.get()[row] = sqrtf(doubt);
  }

  void start(int64_t block, float* out) const {
    for (int64_t o = 16 * block; o < 16 * (block + 1); ++o)
      *out++ = matrix_.bias && o < matrix_.outputs ? matrix_.bias[o] : 0.0f;
  }

  // The values of some blocks, coarse ones with a preview, and the highest of them.
  void look(int64_t from, int64_t to, Local& local) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t b = from; b < to; ++b) start(b, rough(r) + 16 * b);
    output_blocks(preview_ ? preview_->coarse : matrix_, from, to, b_.normed, b_.owner.get(), nullptr, rows_,
                  [&](int32_t row) { return rough(row) + 16 * from; });
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t b = from; b < to; ++b) {
        float* values = rough(r) + 16 * b;
        for (int64_t o = matrix_.outputs; o < 16 * (b + 1); ++o) values[o - 16 * b] = -INFINITY;
        if (highest8(max8(load8(values), load8(values + 8))) <= local.rough[r].value) continue;
        for (int o = 0; o < 16; ++o) raise(local.rough[r], values[o], (int32_t)(16 * b + o));
      }
  }

  float value_of_roughly_highest(int64_t row) const {
    const Highest rough = highest(&Local::rough, row);
    Highest found{-INFINITY, INT32_MAX};
    if (rough.output < matrix_.outputs) compute(row, rough.output / 16, found);
    return found.value;
  }

  bool may_reach(int64_t row, int64_t block, float least) const {
    const float *values = rough(row) + 16 * block, *spread = preview_->spread + 16 * block;
    const float doubt = b_.x.get()[row];
    const v8f low = load8(values) + doubt * load8(spread);
    return highest8(max8(low, load8(values + 8) + doubt * load8(spread + 8))) >= least;
  }

  void compute(int64_t row, int64_t block, Highest& best) const {
    float values[16];
    start(block, values);
    Tile tile;
    tile.input(0, b_.normed, row);
    tile.out[0] = values;
    tile.product(1, matrix_, block, 0, (int)Packed::input_blocks(matrix_));
    for (int64_t o = 16 * block; o < 16 * (block + 1) && o < matrix_.outputs; ++o)
      raise(best, values[o - 16 * block], (int32_t)o);
  }

  const TrimMatrix& matrix_;
  const TrimPreview* preview_;  // or null
  const int64_t rows_, blocks_;
  Buffers& b_;
  Pool& pool_;
};
