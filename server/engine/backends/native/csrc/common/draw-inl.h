// Draws: an output of a matrix for each row, by its value and noise (see `TrimDraw` in native.h).
//
// With head screening most of the matrix is not read. A coarse copy gives each output a value and a
// bound of its error. The score of an output is its value plus noise, which is known. Then
//
//   1. best = exact score of the output with the highest coarse score
//   2. an output block is computed exactly if coarse score + error >= best for any of its outputs
//
// The result is the same as without, for the highest output (no noise) and for samples alike. As
// SVD-softmax (Shim et al., 2017), but with a bound. Rows with filters: see `FilteredDraw`. Of
// output blocks in which nothing is allowed to a row, nothing is read for it.

// Return which of the 16 outputs of a block a draw may take, as bits.
TRIM_INLINE uint32_t allowed_bits(const TrimDraw& draw, int64_t block) {
  if (!draw.allowed) return 0xffff;
  return draw.allowed[block / 2] >> (16 * (block % 2)) & 0xffff;
}

// values[0..16) = -inf for the outputs of a block that a draw may not take.
TRIM_INLINE void remove_others(const TrimDraw& draw, int64_t block, float* values) {
  const uint32_t bits = allowed_bits(draw, block);
  if (bits == 0xffff) return;
  for (int o = 0; o < 16; ++o)
    if (!(bits >> o & 1)) values[o] = -INFINITY;
}

// values[0..16) += the noise of an output block.
TRIM_INLINE void add_noise(const TrimDraw& draw, int64_t block, float* values) {
  if (draw.temperature == 0.0f) return;
  for (int i = 0; i < 16; i += 8)
    store8(values + i,
           load8(values + i) + draw.temperature * noise8(draw.key, (uint32_t)(16 * block + i)));
}

class DrawOutputs {
 public:
  DrawOutputs(const TrimMatrix& matrix, const TrimHeadScreen* screening, const TrimDraw* draws,
              int32_t rows, Buffers& buffers, ThreadPool& pool)
      : matrix_(matrix),
        draws_(draws),
        rows_(rows),
        blocks_(PackedLayout::output_blocks(matrix)),
        screened_(screening != nullptr),
        coarse_(matrix, screening, rows, buffers),
        b_(buffers),
        pool_(pool) {
    b_.normed.resize(rows, matrix.inputs);
    b_.segment_of_row.reserve(rows);
    if (screened_) b_.block_output.reserve(rows * blocks_);
    for (int64_t r = 0; r < rows; ++r) has_filters_ = has_filters_ || is_filtered(r);
    if (has_filters_) {
      b_.bounds.reserve(rows * RowBounds::kFields * RowBounds::padded(blocks_));
      for (int64_t r = 0; r < rows; ++r) bounds(r).pad(blocks_);
    }
    unclear_.assign(rows, 0);
  }

  void run(const float* x, int32_t* outputs) {
    pool_.run([&](int thread) {
      ThreadBuffers& local = b_.threads[thread];
      local.coarse_max.assign(rows_, {-INFINITY, INT32_MAX});
      local.exact_max.assign(rows_, {-INFINITY, INT32_MAX});
      pool_.share(rows_, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          quantise(x + r * matrix_.inputs, matrix_.inputs, b_.normed, r);
          if (screened_) coarse_.prepare(r, local);
        }
      });
      pool_.barrier();
      pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
        for (int64_t b = from; b < to; ++b)
          for (int64_t first = 0; first < rows_; first += kTileRows)
            scan(b, first, min_int(rows_ - first, kTileRows), screened_, local);
      });
      if (screened_) compute_candidates(local);
      if (has_filters_) draw_filtered(outputs, local);
    });
    for (int64_t r = 0; r < rows_; ++r) {
      if (is_filtered(r)) continue;
      const OutputValue found =
          max_of_threads(screened_ ? &ThreadBuffers::exact_max : &ThreadBuffers::coarse_max, r);
      outputs[r] = std::isfinite(found.value) ? found.output : -1;
    }
  }

 private:
  bool is_filtered(int64_t row) const { return FilteredDraw::is_filtered(draws_[row]); }

  RowBounds bounds(int64_t row) const { return {b_.bounds.get(), row, blocks_}; }

  // Return the upper bounds of a row's scores, one for each output block.
  float* upper_bounds(int64_t row) const { return b_.block_output.get() + row * blocks_; }

  // Return the maximum over all threads.
  OutputValue max_of_threads(std::vector<OutputValue> ThreadBuffers::*by, int64_t row) const {
    OutputValue found{-INFINITY, INT32_MAX};
    for (int t = 0; t < pool_.size(); ++t) {
      const OutputValue& one = (b_.threads[t].*by)[row];
      update_max(found, one.value, one.output);
    }
    return found;
  }

  // Compute the values of an output block for the rows `first..first + n`, coarse or exact, and
  // note the highest score of each row, or for filters what is known of the block.
  void scan(int64_t block, int64_t first, int n, bool is_coarse, ThreadBuffers& local) {
    alignas(64) float values[kTileRows][16];
    compute(block, first, n, is_coarse, values);
    for (int m = 0; m < n; ++m) {
      const int64_t r = first + m;
      if (is_filtered(r)) {
        note_bounds(values[m], r, block, is_coarse);
        continue;
      }
      add_noise(draws_[r], block, values[m]);
      const v8f low = load8(values[m]), high = load8(values[m] + 8);
      if (is_coarse)
        upper_bounds(r)[block] = max_element8(max8(low + coarse_.error(r, 16 * block),
                                                   high + coarse_.error(r, 16 * block + 8)));
      OutputValue& best = local.coarse_max[r];
      if (max_element8(max8(low, high)) <= best.value) continue;
      for (int o = 0; o < 16; ++o) update_max(best, values[m][o], (int32_t)(16 * block + o));
    }
  }

  // values[m] = the values of an output block for row first + m; -inf for outputs that are none, or
  // that the row's draw may not take.
  void compute(int64_t block, int64_t first, int n, bool is_coarse, float (*values)[16]) const {
    uint32_t allowed = 0;
    for (int m = 0; m < n; ++m) allowed |= allowed_bits(draws_[first + m], block);
    for (int m = 0; m < n; ++m) set_to_bias(matrix_, block, 1, values[m]);
    if (!allowed) {
      // nothing to compute
    } else if (is_coarse) {
      coarse_.add_values(first, n, block, values);
    } else {
      Tile tile;
      for (int m = 0; m < n; ++m) {
        tile.set_input(m, b_.normed, first + m);
        tile.out[m] = values[m];
      }
      tile.multiply_add(n, matrix_, block, 1, 1, 0, (int)PackedLayout::input_blocks(matrix_));
    }
    for (int64_t o = matrix_.outputs; o < 16 * (block + 1); ++o)
      for (int m = 0; m < n; ++m) values[m][o - 16 * block] = -INFINITY;
    for (int m = 0; m < n; ++m) remove_others(draws_[first + m], block, values[m]);
  }

  void note_bounds(const float* values, int64_t row, int64_t block, bool is_coarse) {
    const v8f low = load8(values), high = load8(values + 8);
    const RowBounds out = bounds(row);
    const float highest = max_element8(max8(low, high));
    if (highest == -INFINITY) return out.clear(block);
    out.highest[block] = out.upper[block] = out.lower[block] = highest;
    out.mass[block] = FilteredDraw::mass(draws_[row], values, highest);
    if (!is_coarse) return;
    const v8f e = coarse_.error(row, 16 * block), f = coarse_.error(row, 16 * block + 8);
    out.upper[block] = max_element8(max8(low + e, high + f));
    out.lower[block] = max_element8(max8(low - e, high - f));
    out.error[block] = max_element8(max8(e, f));
  }

  // Compute the blocks that may hold the highest score of a row.
  void compute_candidates(ThreadBuffers& local) {
    pool_.barrier();
    float* best = local.line.reserve(rows_);
    for (int64_t r = 0; r < rows_; ++r)
      if (!is_filtered(r)) best[r] = exact_score_of_coarse_max(r);
    pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b)
        for (int64_t r = 0; r < rows_; ++r)
          if (!is_filtered(r) && upper_bounds(r)[b] >= best[r]) update(r, b, local.exact_max[r]);
    });
  }

  float exact_score_of_coarse_max(int64_t row) const {
    const OutputValue coarse = max_of_threads(&ThreadBuffers::coarse_max, row);
    OutputValue found{-INFINITY, INT32_MAX};
    if (coarse.output < matrix_.outputs) update(row, coarse.output / 16, found);
    return found.value;
  }

  // Compute the scores of an output block exactly.
  void update(int64_t row, int64_t block, OutputValue& best) const {
    alignas(64) float values[1][16];
    compute(block, row, 1, false, values);
    add_noise(draws_[row], block, values[0]);
    for (int o = 0; o < 16; ++o) update_max(best, values[0][o], (int32_t)(16 * block + o));
  }

  // Draw for the rows with filters, each by one thread. Where coarse values leave it unclear, all
  // exact values of the row are computed first.
  void draw_filtered(int32_t* outputs, ThreadBuffers& local) {
    const auto draw = [&](int64_t r, bool is_coarse) {
      const auto exact = [&](int64_t block, float(*values)[16]) {
        compute(block, r, 1, false, values);
      };
      const RowBounds known = bounds(r);
      unclear_[r] = !FilteredDraw(draws_[r], known, blocks_, is_coarse, local).run(exact, outputs[r]);
    };
    pool_.barrier();
    pool_.share(rows_, 1, [&](int64_t r, int64_t) {
      if (is_filtered(r)) draw(r, screened_);
    });
    if (!screened_) return;
    pool_.barrier();
    if (std::find(unclear_.begin(), unclear_.end(), 1) == unclear_.end()) return;
    pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b)
        for (int64_t r = 0; r < rows_; ++r)
          if (unclear_[r]) scan(b, r, 1, false, local);
    });
    pool_.barrier();
    pool_.share(rows_, 1, [&](int64_t r, int64_t) {
      if (unclear_[r]) draw(r, false);
    });
  }

  const TrimMatrix& matrix_;
  const TrimDraw* draws_;  // [rows]
  const int64_t rows_, blocks_;
  const bool screened_;
  bool has_filters_ = false;
  std::vector<uint8_t> unclear_;  // [rows]
  CoarseHead coarse_;
  Buffers& b_;
  ThreadPool& pool_;
};
