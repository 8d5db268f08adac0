// Attention in fp32: scores of a chunk, and weighted sums of its values.
//
// Keys are transposed first, so that 16 slots are scored at once:
//
//   transposed [head_dim, padded][kSlots]    scores [rows][kChunk]

// transposed[d][0..kSlots) = dimension d of the keys of `n` slots, and 0 for missing slots. `lines`
// is scratch memory, [8][padded_dim].
TRIM_INLINE void transpose_keys(const CachedHead& head, int64_t slot, int n, float* lines,
                                float* transposed) {
  const int padded = head.padded_dim();
  const uint16_t* bf16 = head.bf16_keys(slot, 32);
  if (Isa::kTransposesBf16 && n == kSlots && bf16)
    return Isa::transpose_bf16(bf16, head.dim(), transposed);
  for (int half = 0; half < kSlots; half += 8) {
    for (int i = 0; i < 8; ++i) {
      if (half + i < n)
        head.key(slot + half + i, lines + i * padded);
      else
        memset(lines + i * padded, 0, padded * sizeof(float));
    }
    for (int d = 0; d < padded; d += 8) {
      v8f block[8];
      for (int i = 0; i < 8; ++i) block[i] = load8(lines + i * padded + d);
      transpose8(block);
      for (int i = 0; i < 8; ++i) store8(transposed + (d + i) * kSlots + half, block[i]);
    }
  }
}

// scores[r][0..kSlots * TILES) = queries[r] . keys * scale, for ROWS rows at a time.
template <int ROWS, int TILES>
TRIM_INLINE void score(const float* const* queries, const float* transposed, int dim, int padded,
                       float scale, float* scores) {
  Isa::v16f sum[ROWS][TILES];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) sum[r][t] = Isa::zeros();
  for (int d = 0; d < dim; ++d) {
    Isa::v16f keys[TILES];
    for (int t = 0; t < TILES; ++t) keys[t] = Isa::load(transposed + (t * padded + d) * kSlots);
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t)
        sum[r][t] = Isa::multiply_add(sum[r][t], queries[r][d], keys[t]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      Isa::store(scores + r * kChunk + t * kSlots, Isa::multiply(sum[r][t], scale));
}

template <int TILES>
TRIM_INLINE void score_rows(const float* const* queries, int rows, const float* transposed, int dim,
                            int padded, float scale, float* scores) {
  for (int r = 0; r < rows; r += 4, scores += 4 * kChunk, queries += 4) {
    switch (rows - r) {
      case 1: score<1, TILES>(queries, transposed, dim, padded, scale, scores); break;
      case 2: score<2, TILES>(queries, transposed, dim, padded, scale, scores); break;
      case 3: score<3, TILES>(queries, transposed, dim, padded, scale, scores); break;
      default: score<4, TILES>(queries, transposed, dim, padded, scale, scores);
    }
  }
}

// out[r][at..at + 16 * PARTS) += sum_j(weights[r][j] * values[j][at..]) for n slots j and ROWS
// rows.
template <int ROWS, int PARTS, class Number>
TRIM_INLINE void sum_values_tile(const float* weights, int n, const Number* values, int stride,
                                 float* const* out, int at) {
  Isa::v16f sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = Isa::load(out[r] + at + 16 * i);
  for (int j = 0; j < n; ++j) {
    Isa::v16f value[PARTS];
    for (int i = 0; i < PARTS; ++i)
      value[i] = Isa::load(values + (int64_t)j * stride + at + 16 * i);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < PARTS; ++i)
        sum[r][i] = Isa::multiply_add(sum[r][i], weights[r * kChunk + j], value[i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) Isa::store(out[r] + at + 16 * i, sum[r][i]);
}

// out[r][0..stride) += sum_j(weights[r][j] * values[j]) for n slots j and ROWS rows.
template <int ROWS, class Number>
TRIM_INLINE void sum_values_padded(const float* weights, int n, const Number* values, int stride,
                                   float* const* out) {
  int at = 0;
  for (; at + 64 <= stride; at += 64) sum_values_tile<ROWS, 4>(weights, n, values, stride, out, at);
  for (; at < stride; at += 16) sum_values_tile<ROWS, 1>(weights, n, values, stride, out, at);
}

// The sums above for any number of rows.
template <class Number>
TRIM_INLINE void sum_values_rows(const float* weights, int rows, int n, const Number* values,
                                 int stride, float* const* out) {
  constexpr int kRows = Isa::kValueRows;
  for (; rows >= kRows; rows -= kRows, weights += kRows * kChunk, out += kRows)
    sum_values_padded<kRows>(weights, n, values, stride, out);
  if constexpr (kRows == 4) {
    if (rows == 3) sum_values_padded<3>(weights, n, values, stride, out);
    if (rows == 2) sum_values_padded<2>(weights, n, values, stride, out);
    if (rows == 1) sum_values_padded<1>(weights, n, values, stride, out);
  }
}

// scores[r][0..count) = queries[r] . keys * scale, for `count` slots from `slot` on.
TRIM_INLINE void score_chunk(const CachedHead& head, const float* const* queries, int rows,
                             int64_t slot, int count, float scale, ThreadBuffers& scratch,
                             float* scores) {
  const int padded = head.padded_dim(), dim = head.dim();
  constexpr int kTransposed = Isa::kScoreTiles * kSlots;
  float* transposed = scratch.transposed.reserve((int64_t)padded * (kTransposed + 8));
  float* lines = transposed + (int64_t)padded * kTransposed;
  for (int at = 0; at < count; at += kTransposed) {
    int tiles = 0;
    for (; tiles < Isa::kScoreTiles && at + tiles * kSlots < count; ++tiles) {
      const int there = at + tiles * kSlots;
      head.prefetch_values(slot + there);
      transpose_keys(head, slot + there, min_int(count - there, kSlots), lines,
                     transposed + (int64_t)tiles * padded * kSlots);
    }
    if (tiles == 1)
      score_rows<1>(queries, rows, transposed, dim, padded, scale, scores + at);
    else
      score_rows<Isa::kScoreTiles>(queries, rows, transposed, dim, padded, scale, scores + at);
  }
}

// out[r].values += the weighted sum of the values of `count` slots from `slot` on. `scores` holds
// the weights. `prefetch_next(at)` is called before slot + at is read.
template <class Prefetch>
TRIM_INLINE void sum_values(const CachedHead& head, const float* scores, int rows, int64_t slot,
                            int count, ThreadBuffers& scratch, PartialSoftmax* out,
                            Prefetch prefetch_next) {
  const int padded = head.padded_dim();
  float* values = scratch.values.reserve((int64_t)kSlots * padded);
  float** sums = scratch.outputs.reserve(rows);
  for (int r = 0; r < rows; ++r) sums[r] = out[r].values;
  for (int at = 0; at < count; at += kSlots) {
    const int n = min_int(count - at, kSlots);
    prefetch_next(at);
    const uint16_t* bf16 = head.bf16_values(slot + at, 16);
    if (rows <= Isa::kValueRows && bf16) {
      sum_values_rows(scores + at, rows, n, bf16, padded, sums);
      continue;
    }
    for (int i = 0; i < n; ++i) head.value(slot + at + i, values + (int64_t)i * padded);
    sum_values_rows(scores + at, rows, n, values, padded, sums);
  }
}
