// The coarse copy of an output head: values of all outputs with bounds of their errors, from a part
// of the head's bytes (formulas: `TrimHeadScreen` in native.h).

class CoarseHead {
 public:
  CoarseHead(const TrimMatrix& matrix, const TrimHeadScreen* screening, int32_t rows,
             Buffers& buffers)
      : screening_(screening), b_(buffers) {
    if (!screening) return;
    b_.screening.resize(rows, matrix.inputs);
    b_.coarse.reserve(rows);
    for (int k = 0; k < b_.screening.blocks; ++k) block_bytes_ += 128 * screening->planes[k];
  }

  // Quantise the reordered inputs z of a row, which is quantised in `normed`.
  void prepare(int64_t row, ThreadBuffers& local) {
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

  // values[m][0..16) += the coarse values of an output block, for the rows `first..first + rows`.
  void add_values(int64_t first, int rows, int64_t block, float (*values)[16]) const {
    alignas(64) float found[kTileRows][16];
    Tile tile;
    for (int m = 0; m < rows; ++m) {
      tile.set_input(m, b_.screening, first + m);
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

  // Return bounds of the errors of the outputs `first..first + 8`.
  v8f error(int64_t row, int64_t first) const {
    const CoarseRow& coarse = b_.coarse.get()[row];
    return max8(load8(screening_->spread + first) * coarse.deviation, splat(coarse.max_error));
  }

 private:
  const TrimHeadScreen* screening_;  // or null
  int64_t block_bytes_ = 0;          // of an output block
  Buffers& b_;
};
