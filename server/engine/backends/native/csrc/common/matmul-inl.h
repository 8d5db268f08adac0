// Packed matrices times quantised rows.
//
//   out[row][o] += sum_k(scale[o][k] * x_scale[row][k] * (codes[o][k] . x_codes[row][k])
//                        + minimum[o][k] * x_sum[row][k])
//
// for input blocks k of 32. The minimum is there with 4 bits only. Layouts: `TrimMatrix` in
// native.h, `QuantisedRows` in buffers.h.
//
// A tile is 1 to 4 rows x 1 or more output blocks; its accumulators stay in registers.

struct PackedLayout {
  static int64_t block_bytes(const TrimMatrix& m) { return m.bits == 4 ? 320 : 544; }
  static int64_t output_blocks(const TrimMatrix& m) { return round_up(m.outputs, 16) / 16; }
  static int64_t input_blocks(const TrimMatrix& m) { return round_up(m.inputs, 32) / 32; }
  // Distance in bytes from a block to the next one along the outputs, and along the inputs.
  static int64_t output_stride(const TrimMatrix& m) {
    return block_bytes(m) * (m.input_major ? 1 : input_blocks(m));
  }
  static int64_t input_stride(const TrimMatrix& m) {
    return block_bytes(m) * (m.input_major ? output_blocks(m) : 1);
  }
};

// Quantise x[0..width) into row `row` of q, from block `first` on. The last block is filled with 0.
TRIM_INLINE void quantise(const float* x, int64_t width, QuantisedRows& q, int64_t row,
                          int64_t first = 0) {
  int8_t* codes = q.code(row) + 32 * first;
  float *scales = q.scale(row) + first, *sums = q.sum(row) + first;
  int32_t* compensation = q.compensation(row) + first;
  for (int64_t block = 0; 32 * block < width; ++block) {
    float tail[32];
    const float* p = x + 32 * block;
    if (32 * (block + 1) > width) {
      for (int i = 0; i < 32; ++i) tail[i] = 32 * block + i < width ? p[i] : 0.0f;
      p = tail;
    }
    v8f v[4];
    v8i bits = {};
    for (int i = 0; i < 4; ++i) {
      v[i] = load8(p + 8 * i);
      bits = max8(bits, bits8(v[i]) & 0x7fffffff);
    }
    // Compared as bits, NaN is the highest. The scale is then NaN, and so is every product.
    const float highest = max_float_of_bits8(bits), scale = highest / 127.0f;
    const v8f inverse = splat(highest > 0 ? 127.0f / highest : 0.0f);
    for (int i = 0; i < 4; ++i) v[i] *= inverse;
    const int32_t sum = Isa::store_int8(codes + 32 * block, v);
    scales[block] = scale;
    sums[block] = scale * (float)sum;
    compensation[block] =
        (int32_t)(-128u * (uint32_t)sum);  // any value will do if the scale is NaN
  }
}

// Return input `i` of a quantised row.
TRIM_INLINE float dequantise(const QuantisedRows& q, int64_t row, int64_t i) {
  return q.code(row)[i] * q.scale(row)[i / 32];
}

// Set a block of a quantised row to 0.
TRIM_INLINE void zero_block(QuantisedRows& q, int64_t row, int64_t block) {
  memset(q.code(row) + 32 * block, 0, 32);
  q.scale(row)[block] = q.sum(row)[block] = 0.0f;
  q.compensation(row)[block] = 0;
}

// Set out[0..16 * count) to the bias of output blocks `from..from + count`, or to 0.
TRIM_INLINE void set_to_bias(const TrimMatrix& m, int64_t from, int64_t count, float* out) {
  const int64_t width = 16 * count;
  const int64_t biased = m.bias ? max_int64(0, min_int(m.outputs - 16 * from, (int)width)) : 0;
  if (biased) memcpy(out, m.bias + 16 * from, biased * sizeof(float));
  memset(out + biased, 0, (width - biased) * sizeof(float));
}

// Rows of inputs, and the outputs that products are added to.
struct Tile : TileRows {
  void set_input(int m, const QuantisedRows& q, int64_t row, int64_t block = 0) {
    x[m] = q.code(row) + 32 * block;
    scales[m] = q.scale(row) + block;
    sums[m] = q.sum(row) + block;
    compensation[m] = q.compensation(row) + block;
  }

  // out[row][0..16 * count) += product with output blocks `from..from + count` of the matrix and
  // with its input blocks `input_block..input_block + blocks`. `together` output blocks are
  // computed at a time. `out` is moved behind the outputs.
  void multiply_add(int rows, const TrimMatrix& m, int64_t from, int64_t count, int together,
                    int64_t input_block, int blocks) {
    const uint8_t* block = m.data + from * PackedLayout::output_stride(m) +
                           input_block * PackedLayout::input_stride(m);
    while (count > 0) {
      const int n = count < together ? 1 : together;
      if (!m.input_major) prefetch = n == 1 ? kPrefetchBytes : n * PackedLayout::output_stride(m);
      if (m.bits == 4)
        run<4>(rows, n, m, block, blocks);
      else
        run<8>(rows, n, m, block, blocks);
      for (int i = 0; i < rows; ++i) out[i] += 16 * n;
      block += n * PackedLayout::output_stride(m);
      count -= n;
    }
  }

  // out[row][0..16) = the codes of one output block of a head screening times the inputs.
  void coarse_dot(int rows, const uint8_t* block, const int32_t* planes, int blocks) {
    static_assert(kTileRows == 4, "one case for each number of rows");
    switch (rows) {
      case 1: return Isa::template coarse_dot<1>(block, planes, blocks, *this);
      case 2: return Isa::template coarse_dot<2>(block, planes, blocks, *this);
      case 3: return Isa::template coarse_dot<3>(block, planes, blocks, *this);
      case 4: return Isa::template coarse_dot<4>(block, planes, blocks, *this);
    }
  }

 private:
  template <int BITS>
  void run(int rows, int together, const TrimMatrix& m, const uint8_t* block, int blocks) {
    if (together == 1) return run<1, BITS>(rows, m, block, blocks);
    run<Isa::kTileBlocks, BITS>(rows, m, block, blocks);
  }

  template <int N, int BITS>
  void run(int rows, const TrimMatrix& m, const uint8_t* block, int blocks) {
    static_assert(kTileRows == 4, "one case for each number of rows");
    const int64_t output_stride = PackedLayout::output_stride(m);
    const int64_t input_stride = PackedLayout::input_stride(m);
    switch (rows) {
      case 1:
        return Isa::template tile<1, N, BITS>(block, output_stride, input_stride, blocks, *this);
      case 2:
        return Isa::template tile<2, N, BITS>(block, output_stride, input_stride, blocks, *this);
      case 3:
        return Isa::template tile<3, N, BITS>(block, output_stride, input_stride, blocks, *this);
      case 4:
        return Isa::template tile<4, N, BITS>(block, output_stride, input_stride, blocks, *this);
    }
  }
};

// Return how many output blocks are computed at a time. With few rows memory bandwidth is the
// limit, and one block after the other is the best order to read them.
TRIM_INLINE int blocks_together(int rows) { return rows > kTileRows ? Isa::kTileBlocks : 1; }

// The rows that a matrix is multiplied with: rows[0..count). Row i has width[i] inputs, in falling
// order; null: all inputs of the matrix.
struct RowSet {
  const int32_t *rows, *width;
  int count;
  RowSet slice(int first, int n) const { return {rows + first, width ? width + first : width, n}; }
  int64_t input_blocks(const TrimMatrix& m, int i) const {
    return round_up(width ? width[i] : m.inputs, 32) / 32;
  }
};

// place(row)[0..16 * count) += product with output blocks `from..from + count` of the matrix.
template <class Place>
static void multiply_tiles(const TrimMatrix& matrix, int64_t from, int64_t count,
                           const QuantisedRows& inputs, const RowSet& set, const Place& place) {
  for (int first = 0; first < set.count; first += kTileRows) {
    const int n = min_int(set.count - first, kTileRows);
    Tile tile;
    for (int m = 0; m < n; ++m) {
      tile.set_input(m, inputs, set.rows[first + m]);
      tile.out[m] = place(set.rows[first + m]);
    }
    tile.multiply_add(n, matrix, from, count, blocks_together(set.count), 0,
                      (int)set.input_blocks(matrix, first));
  }
}

constexpr int kFewRows = 16;
constexpr int kCachedRows = 64;  // whose inputs stay in the processor's cache between blocks

// Return whether to read the matrix input block by input block: it lies in memory in this order,
// and with few rows memory bandwidth is the limit.
TRIM_INLINE bool is_streamed(const TrimMatrix& matrix, int rows) {
  return matrix.input_major && rows <= kFewRows;
}

// place(row)[0..16 * (end - begin)) += product with output blocks `begin..end` of the matrix, for
// all rows of the set. Blocks are read in the order in which they lie in memory.
template <class Place>
static void multiply(const TrimMatrix& matrix, int64_t begin, int64_t end,
                     const QuantisedRows& inputs, const RowSet& set, const Place& place) {
  constexpr int kStreamedBlocks = 8;  // input blocks read at a time
  const int step = blocks_together(set.count);
  if (!is_streamed(matrix, set.count)) {
    for (int first = 0; first < set.count; first += kCachedRows)
      for (int64_t b = begin; b < end; b += step)
        multiply_tiles(matrix, b, min_int(end - b, step), inputs,
                       set.slice(first, min_int(set.count - first, kCachedRows)),
                       [&](int32_t row) { return place(row) + 16 * (b - begin); });
    return;
  }
  // The outputs are accumulated in memory. They are few and stay in the processor's cache.
  const int64_t widest = set.count ? set.input_blocks(matrix, 0) : 0;
  for (int64_t from = 0; from < widest; from += kStreamedBlocks) {
    Tile group[kFewRows / kTileRows];
    int sizes[kFewRows / kTileRows], blocks[kFewRows / kTileRows], groups = 0;
    for (int first = 0; first < set.count; first += kTileRows, ++groups) {
      const int64_t available = set.input_blocks(matrix, first);
      if (available <= from) break;
      blocks[groups] = min_int(available - from, kStreamedBlocks);
      sizes[groups] = min_int(set.count - first, kTileRows);
      group[groups].prefetch = kStreamedBlocks * PackedLayout::input_stride(matrix);
      for (int m = 0; m < sizes[groups]; ++m) {
        group[groups].set_input(m, inputs, set.rows[first + m], from);
        group[groups].out[m] = place(set.rows[first + m]);
      }
    }
    for (int64_t b = begin; b < end; b += step)
      for (int g = 0; g < groups; ++g)
        group[g].multiply_add(sizes[g], matrix, b, min_int(end - b, step), step, from, blocks[g]);
  }
}
