// The output of a matrix with the highest value.
//
// With head screening most of the matrix is not read. A coarse copy gives each output a value and a
// bound of its error (formulas: `TrimHeadScreen` in native.h). Then
//
//   1. best = exact value of the output with the highest coarse value
//   2. an output block is computed exactly if coarse + error >= best for any of its outputs
//
// The result is the same as without. As SVD-softmax (Shim et al., 2017), but with a bound.

TRIM_INLINE void update_max(OutputValue& best, float value, int32_t output) {
  if (value > best.value || (value == best.value && output < best.output)) best = {value, output};
}

class Argmax {
 public:
  Argmax(const TrimMatrix& matrix, const TrimHeadScreen* screening, int32_t rows,
         Buffers& buffers, ThreadPool& pool)
      : matrix_(matrix),
        screening_(screening),
        rows_(rows),
        blocks_(round_up(matrix.outputs, 16) / 16),
        b_(buffers),
        pool_(pool) {
    b_.normed.resize(rows, matrix.inputs);
    b_.segment_of_row.reserve(rows);
    if (!screening) return;
    b_.block_output.reserve(rows * blocks_);
    b_.screening.resize(rows, matrix.inputs);
    b_.coarse.reserve(rows);
    for (int k = 0; k < b_.screening.blocks; ++k) block_bytes_ += 128 * screening->planes[k];
  }

  void run(const float* x, int32_t* outputs) {
    pool_.run([&](int thread) {
      ThreadBuffers& local = b_.threads[thread];
      local.coarse_max.assign(rows_, {-INFINITY, INT32_MAX});
      local.exact_max.assign(rows_, {-INFINITY, INT32_MAX});
      pool_.share(rows_, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) prepare(x + r * matrix_.inputs, r, local);
      });
      pool_.barrier();
      pool_.share(blocks_, pool_.grain(blocks_),
                  [&](int64_t from, int64_t to) { scan(from, to, local); });
      if (!screening_) return;
      pool_.barrier();
      float* best = local.line.reserve(rows_);
      for (int64_t r = 0; r < rows_; ++r) best[r] = exact_value_of_coarse_max(r);
      pool_.share(blocks_, pool_.grain(blocks_), [&](int64_t from, int64_t to) {
        for (int64_t b = from; b < to; ++b) {
          for (int64_t r = 0; r < rows_; ++r)
            if (upper_bounds(r)[b] >= best[r]) compute(r, b, local.exact_max[r]);
        }
      });
    });
    for (int64_t r = 0; r < rows_; ++r) {
      const OutputValue found =
          max_of_threads(screening_ ? &ThreadBuffers::exact_max : &ThreadBuffers::coarse_max, r);
      outputs[r] = std::isfinite(found.value) ? found.output : -1;
    }
  }

 private:
  // Return the upper bounds of a row, one for each output block.
  float* upper_bounds(int64_t row) const { return b_.block_output.get() + row * blocks_; }

  // Return the maximum over coarse threads.
  OutputValue max_of_threads(std::vector<OutputValue> ThreadBuffers::*by, int64_t row) const {
    OutputValue found{-INFINITY, INT32_MAX};
    for (int t = 0; t < pool_.size(); ++t) {
      const OutputValue& one = (b_.threads[t].*by)[row];
      update_max(found, one.value, one.output);
    }
    return found;
  }

  // Quantise a row, and for screening also its reordered inputs z.
  void prepare(const float* x, int64_t row, ThreadBuffers& local) {
    b_.segment_of_row.get()[row] = (int32_t)row;
    quantise(x, matrix_.inputs, b_.normed, row);
    if (!screening_) return;
    const QuantisedRows& out = b_.screening;
    float* z = local.line.reserve(out.inputs);
    CoarseRow coarse{0, 0, 0, 0};
    for (int64_t i = 0; i < out.inputs; ++i) {
      coarse.mean_term += screening_->mean[i] * dequantise(b_.normed, row, i);
      z[i] = dequantise(b_.normed, row, screening_->order[i]) * screening_->factor[i];
    }
    quantise(z, out.inputs, b_.screening, row);
    for (int64_t k = 0; k < out.blocks; ++k) {
      float squares = 0, rounding = 0, largest = 0;
      for (int64_t i = 32 * k; i < 32 * (k + 1); ++i) {
        const float error = z[i] - dequantise(out, row, i);
        squares += z[i] * z[i];
        rounding += error * error;
        if (fabsf(z[i]) > largest) largest = fabsf(z[i]);
      }
      if (screening_->max_error[k] * largest > coarse.max_error)
        coarse.max_error = screening_->max_error[k] * largest;
      coarse.deviation +=
          screening_->code_error[k] * squares + screening_->input_error[k] * rounding;
      coarse.centre += 0.5f * ((1 << 2 * screening_->planes[k]) - 1) * out.sum(row)[k];
    }
    coarse.deviation = sqrtf(coarse.deviation);
    b_.coarse.get()[row] = coarse;
  }

  // Find the highest value of output blocks `from..to`; with screening the highest coarse value,
  // and the upper bound of each block.
  void scan(int64_t from, int64_t to, ThreadBuffers& local) {
    alignas(64) float values[kTileRows][16];
    for (int64_t b = from; b < to; ++b)
      for (int64_t first = 0; first < rows_; first += kTileRows) {
        const int n = min_int(rows_ - first, kTileRows);
        Tile tile;
        for (int m = 0; m < n; ++m) {
          tile.set_input(m, screening_ ? b_.screening : b_.normed, first + m);
          set_to_bias(matrix_, b, 1, tile.out[m] = values[m]);
        }
        if (screening_)
          add_coarse_values(tile, first, n, b);
        else
          tile.multiply_add(n, matrix_, b, 1, 1, 0, (int)PackedLayout::input_blocks(matrix_));
        for (int m = 0; m < n; ++m) {
          for (int64_t o = matrix_.outputs; o < 16 * (b + 1); ++o)
            values[m][o - 16 * b] = -INFINITY;
          const float highest = max_element8(max8(load8(values[m]), load8(values[m] + 8)));
          OutputValue& best = local.coarse_max[first + m];
          if (screening_) upper_bounds(first + m)[b] = upper_bound(values[m], first + m, b);
          if (highest <= best.value) continue;
          for (int o = 0; o < 16; ++o) update_max(best, values[m][o], (int32_t)(16 * b + o));
        }
      }
  }

  // Return the highest value that an output of a block may have.
  float upper_bound(const float* values, int64_t row, int64_t block) const {
    const CoarseRow& coarse = b_.coarse.get()[row];
    v8f highest = splat(-INFINITY);
    for (int i = 0; i < 16; i += 8) {
      const v8f error = max8(load8(screening_->spread + 16 * block + i) * coarse.deviation,
                             splat(coarse.max_error));
      highest = max8(highest, load8(values + i) + error);
    }
    return max_element8(highest);
  }

  // Add the coarse values of an output block to the outputs of a tile.
  void add_coarse_values(Tile& tile, int64_t first, int rows, int64_t block) {
    alignas(64) float found[kTileRows][16];
    float* values[kTileRows];
    for (int m = 0; m < rows; ++m) {
      values[m] = tile.out[m];
      tile.out[m] = found[m];
    }
    tile.coarse_dot(rows, screening_->data + block * block_bytes_, screening_->planes,
                    (int)b_.screening.blocks);
    const float* scale = screening_->scale + 16 * block;
    for (int m = 0; m < rows; ++m) {
      const CoarseRow& coarse = b_.coarse.get()[first + m];
      for (int o = 0; o < 16; ++o)
        values[m][o] += coarse.mean_term + scale[o] * (found[m][o] - coarse.centre);
    }
  }

  float exact_value_of_coarse_max(int64_t row) const {
    const OutputValue coarse = max_of_threads(&ThreadBuffers::coarse_max, row);
    OutputValue found{-INFINITY, INT32_MAX};
    if (coarse.output < matrix_.outputs) compute(row, coarse.output / 16, found);
    return found.value;
  }

  // Compute an output block exactly.
  void compute(int64_t row, int64_t block, OutputValue& best) const {
    float values[16];
    set_to_bias(matrix_, block, 1, values);
    Tile tile;
    tile.set_input(0, b_.normed, row);
    tile.out[0] = values;
    tile.multiply_add(1, matrix_, block, 1, 1, 0, (int)PackedLayout::input_blocks(matrix_));
    for (int64_t o = 16 * block; o < 16 * (block + 1) && o < matrix_.outputs; ++o)
      update_max(best, values[o - 16 * block], (int32_t)o);
  }

  const TrimMatrix& matrix_;
  const TrimHeadScreen* screening_;  // or null
  const int64_t rows_, blocks_;
  int64_t block_bytes_ = 0;  // of an output block of the head screening
  Buffers& b_;
  ThreadPool& pool_;
};
