// The table of kernels of one instruction set. Included last.

static void step(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
                 Buffers& buffers, ThreadPool& pool, float* hidden) {
  Step(model, cache, batch, buffers, pool).run(hidden);
}

static void project(const TrimMatrix& matrix, const float* x, int32_t rows, Buffers& buffers,
                    ThreadPool& pool, float* y) {
  QuantisedRows& q = buffers.normed;
  q.resize(rows, matrix.inputs);
  int32_t* all = buffers.segment_of_row.reserve(rows);
  const int64_t padded = round_up(matrix.outputs, 16), blocks = padded / 16;
  float* out = padded == matrix.outputs ? y : buffers.block_output.reserve(rows * padded);
  pool.run([&](int) {
    pool.share(rows, 4, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        all[r] = (int32_t)r;
        quantise(x + r * matrix.inputs, matrix.inputs, q, r);
      }
    });
    pool.barrier();
    pool.share(blocks, pool.grain(blocks), [&](int64_t from, int64_t to) {
      for (int64_t r = 0; r < rows; ++r)
        set_to_bias(matrix, from, to - from, out + r * padded + 16 * from);
      multiply(matrix, from, to, q, {all, nullptr, rows},
               [&](int32_t row) { return out + row * padded + 16 * from; });
    });
  });
  if (out != y)
    for (int64_t r = 0; r < rows; ++r)
      memcpy(y + r * matrix.outputs, out + r * padded, matrix.outputs * sizeof(float));
}

static void draw(const TrimMatrix& matrix, const TrimHeadScreen* screening, const float* x,
                 const TrimDraw* draws, int32_t rows, Buffers& buffers, ThreadPool& pool,
                 int32_t* outputs) {
  DrawOutputs(matrix, screening, draws, rows, buffers, pool).run(x, outputs);
}

extern const Kernels kernels;
const Kernels kernels = {TRIM_STRING(TRIM_ISA), step, project, draw};
