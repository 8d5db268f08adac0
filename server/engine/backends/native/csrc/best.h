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
    if (!preview) return;
    b_.y.fit(rows * blocks_);
    b_.reordered.fit(rows, matrix.inputs);
    b_.coarse.fit(rows);
    for (int k = 0; k < b_.reordered.blocks; ++k) bytes_ += 128 * preview->planes[k];
  }

  void run(const float* x, int32_t* best) {
    pool_.run([&](int thread) {
      Local& local = b_.local[thread];
      local.rough.assign(rows_, {-INFINITY, INT32_MAX});
      local.highest.assign(rows_, {-INFINITY, INT32_MAX});
      pool_.share(rows_, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) prepare(x + r * matrix_.inputs, r, local);
      });
      pool_.barrier();
      pool_.share(blocks_, pool_.grain(blocks_),
                  [&](int64_t from, int64_t to) { look(from, to, local); });
      if (!preview_) return;
      pool_.barrier();
      float* lowest = local.line.fit(rows_);  // that may be the highest
      for (int64_t r = 0; r < rows_; ++r) lowest[r] = value_of_roughly_highest(r);
      pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
        for (int64_t b = from; b < to; ++b) {
          for (int64_t r = 0; r < rows_; ++r)
            if (ceiling(r)[b] >= lowest[r]) compute(r, b, local.highest[r]);
        }
      });
    });
    for (int64_t r = 0; r < rows_; ++r) {
      const Highest found = highest(preview_ ? &Local::highest : &Local::rough, r);
      best[r] = std::isfinite(found.value) ? found.output : -1;
    }
  }

 private:
  // How high the outputs of each block may be.
  float* ceiling(int64_t row) const { return b_.y.get() + row * blocks_; }

  // Of what all threads have found.
  Highest highest(std::vector<Highest> Local::*by, int64_t row) const {
    Highest found{-INFINITY, INT32_MAX};
    for (int t = 0; t < pool_.size(); ++t) {
      const Highest& one = (b_.local[t].*by)[row];
      raise(found, one.value, one.output);
    }
    return found;
  }

  void prepare(const float* x, int64_t row, Local& local) {
    b_.owner.get()[row] = (int32_t)row;
    quantise(x, matrix_.inputs, b_.normed, row);
    if (!preview_) return;
    const Quantised& out = b_.reordered;
    float* z = local.line.fit(out.inputs);
    Coarse all{0, 0, 0, 0};
    for (int64_t i = 0; i < out.inputs; ++i) {
      all.shared += preview_->mean[i] * value(b_.normed, row, i);
      z[i] = value(b_.normed, row, preview_->order[i]) * preview_->factor[i];
    }
    quantise(z, out.inputs, b_.reordered, row);
    for (int64_t k = 0; k < out.blocks; ++k) {
      float squares = 0, lost = 0, largest = 0;
      for (int64_t i = 32 * k; i < 32 * (k + 1); ++i) {
        const float off = z[i] - value(out, row, i);
        squares += z[i] * z[i];
        lost += off * off;
        if (fabsf(z[i]) > largest) largest = fabsf(z[i]);
      }
      if (preview_->worst[k] * largest > all.worst) all.worst = preview_->worst[k] * largest;
      all.doubt += preview_->doubt[k] * squares + preview_->loss[k] * lost;
      all.centre += 0.5f * ((1 << 2 * preview_->planes[k]) - 1) * out.sum(row)[k];
    }
    all.doubt = sqrtf(all.doubt);
    b_.coarse.get()[row] = all;
  }

  // The highest value, and with a preview how high those of each block may be.
  void look(int64_t from, int64_t to, Local& local) {
    alignas(64) float values[kRows][16];
    for (int64_t b = from; b < to; ++b)
      for (int64_t first = 0; first < rows_; first += kRows) {
        const int n = least(rows_ - first, kRows);
        Tile tile;
        for (int m = 0; m < n; ++m) {
          tile.input(m, preview_ ? b_.reordered : b_.normed, first + m);
          start(matrix_, b, 1, tile.out[m] = values[m]);
        }
        if (preview_)
          glance(tile, first, n, b);
        else
          tile.product(n, matrix_, b, 1, 1, 0, (int)Packed::input_blocks(matrix_));
        for (int m = 0; m < n; ++m) {
          for (int64_t o = matrix_.outputs; o < 16 * (b + 1); ++o) values[m][o - 16 * b] = -INFINITY;
          const float high = highest8(max8(load8(values[m]), load8(values[m] + 8)));
          Highest& best = local.rough[first + m];
          if (preview_) ceiling(first + m)[b] = bound(values[m], first + m, b);
          if (high <= best.value) continue;
          for (int o = 0; o < 16; ++o) raise(best, values[m][o], (int32_t)(16 * b + o));
        }
      }
  }

  float bound(const float* values, int64_t row, int64_t block) const {
    const Coarse& all = b_.coarse.get()[row];
    v8f high = splat(-INFINITY);
    for (int i = 0; i < 16; i += 8) {
      const v8f off = max8(load8(preview_->spread + 16 * block + i) * all.doubt, splat(all.worst));
      high = max8(high, load8(values + i) + off);
    }
    return highest8(high);
  }

  // Adds coarse values to what `tile` starts from.
  void glance(Tile& tile, int64_t first, int rows, int64_t block) {
    alignas(64) float found[kRows][16];
    float* values[kRows];
    for (int m = 0; m < rows; ++m) {
      values[m] = tile.out[m];
      tile.out[m] = found[m];
    }
    tile.glance(rows, preview_->data + block * bytes_, preview_->planes, (int)b_.reordered.blocks);
    const float* scale = preview_->scale + 16 * block;
    for (int m = 0; m < rows; ++m) {
      const Coarse& all = b_.coarse.get()[first + m];
      for (int o = 0; o < 16; ++o)
        values[m][o] += all.shared + scale[o] * (found[m][o] - all.centre);
    }
  }

  float value_of_roughly_highest(int64_t row) const {
    const Highest rough = highest(&Local::rough, row);
    Highest found{-INFINITY, INT32_MAX};
    if (rough.output < matrix_.outputs) compute(row, rough.output / 16, found);
    return found.value;
  }

  void compute(int64_t row, int64_t block, Highest& best) const {
    float values[16];
    start(matrix_, block, 1, values);
    Tile tile;
    tile.input(0, b_.normed, row);
    tile.out[0] = values;
    tile.product(1, matrix_, block, 1, 1, 0, (int)Packed::input_blocks(matrix_));
    for (int64_t o = 16 * block; o < 16 * (block + 1) && o < matrix_.outputs; ++o)
      raise(best, values[o - 16 * block], (int32_t)o);
  }

  const TrimMatrix& matrix_;
  const TrimPreview* preview_;  // or null
  const int64_t rows_, blocks_;
  int64_t bytes_ = 0;  // of an output block of the preview
  Buffers& b_;
  Pool& pool_;
};
