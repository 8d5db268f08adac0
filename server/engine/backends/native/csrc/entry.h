// What the engine calls of one instruction set. Included last, inside its namespace.

static void step(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
                 Buffers& buffers, Pool& pool, float* hidden) {
  Step(model, cache, batch, buffers, pool).run(hidden);
}

static void project(const TrimMatrix& matrix, const float* x, int32_t rows, Buffers& buffers,
                    Pool& pool, float* y) {
  Quantised& q = buffers.normed;
  q.fit(rows, matrix.inputs);
  int32_t* all = buffers.owner.fit(rows);
  const int64_t padded = up(matrix.outputs, 16), blocks = padded / 16;
  float* out = padded == matrix.outputs ? y : buffers.y.fit(rows * padded);
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
        start(matrix, from, to - from, out + r * padded + 16 * from);
      output_blocks(matrix, from, to, q, {all, nullptr, rows},
                    [&](int32_t row) { return out + row * padded + 16 * from; });
    });
  });
  if (out != y)
    for (int64_t r = 0; r < rows; ++r)
      memcpy(y + r * matrix.outputs, out + r * padded, matrix.outputs * sizeof(float));
}

static void best(const TrimMatrix& matrix, const TrimPreview* preview, const float* x,
                 int32_t rows, Buffers& buffers, Pool& pool, int32_t* found) {
  Best(matrix, preview, rows, buffers, pool).run(x, found);
}

extern const Kernels kernels;
const Kernels kernels = {TRIM_NAME, step, project, best};
