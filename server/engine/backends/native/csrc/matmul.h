// Packed matrices times quantised rows. Included once for each instruction set.

struct Packed {
  static int64_t block_bytes(const TrimMatrix& m) { return m.bits == 4 ? 320 : 544; }
  static int64_t output_blocks(const TrimMatrix& m) { return up(m.outputs, 16) / 16; }
  static int64_t input_blocks(const TrimMatrix& m) { return up(m.inputs, 32) / 32; }
  // Bytes from one block to the next along the outputs, and along the inputs.
  static int64_t output_stride(const TrimMatrix& m) {
    return block_bytes(m) * (m.input_major ? 1 : input_blocks(m));
  }
  static int64_t input_stride(const TrimMatrix& m) {
    return block_bytes(m) * (m.input_major ? output_blocks(m) : 1);
  }
};

// Writes a row from block `first` on; what lies beyond `width` in its last block counts as 0.
TRIM_INLINE void quantise(const float* x, int64_t width, Quantised& q, int64_t row,
                          int64_t first = 0) {
  int8_t* codes = q.code(row) + 32 * first;
  float *scales = q.scale(row) + first, *sums = q.sum(row) + first;
  int32_t* excess = q.excess(row) + first;
  for (int64_t block = 0; 32 * block < width; ++block) {
    float tail[32];
    const float* p = x + 32 * block;
    if (32 * (block + 1) > width) {
      for (int i = 0; i < 32; ++i) tail[i] = 32 * block + i < width ? p[i] : 0.0f;
      p = tail;
    }
    v8f v[4];
    v8i most = {};
    for (int i = 0; i < 4; ++i) {
      v[i] = load8(p + 8 * i);
      most = max8(most, bits8(v[i]) & 0x7fffffff);
    }
    // As bits, what is no number is the highest: then neither is the scale, nor any product.
    const float highest = highest_bits8(most), scale = highest / 127.0f;
    const v8f inverse = splat(highest > 0 ? 127.0f / highest : 0.0f);
    for (int i = 0; i < 4; ++i) v[i] *= inverse;
    const int32_t sum = Isa::store_int8(codes + 32 * block, v);
    scales[block] = scale;
    sums[block] = scale * (float)sum;
    excess[block] = (int32_t)(-128u * (uint32_t)sum);  // any, where the scale is no number
  }
}

// What a quantised number stands for.
TRIM_INLINE float value(const Quantised& q, int64_t row, int64_t i) {
  return q.code(row)[i] * q.scale(row)[i / 32];
}

// What lies beyond a row's reach in block `block` counts as 0.
TRIM_INLINE void nothing(Quantised& q, int64_t row, int64_t block) {
  memset(q.code(row) + 32 * block, 0, 32);
  q.scale(row)[block] = q.sum(row)[block] = 0.0f;
  q.excess(row)[block] = 0;
}

// What products are added to: a matrix's bias for output blocks `from..from + count`.
TRIM_INLINE void start(const TrimMatrix& m, int64_t from, int64_t count, float* out) {
  const int64_t width = 16 * count;
  const int64_t held = m.bias ? most(0, least(m.outputs - 16 * from, (int)width)) : 0;
  if (held) memcpy(out, m.bias + 16 * from, held * sizeof(float));
  memset(out + held, 0, (width - held) * sizeof(float));
}

// A group of rows for some output blocks.
struct Tile : Lines {
  void input(int m, const Quantised& q, int64_t row, int64_t block = 0) {
    x[m] = q.code(row) + 32 * block;
    scales[m] = q.scale(row) + block;
    sums[m] = q.sum(row) + block;
    excess[m] = q.excess(row) + block;
  }

  // out[row][0..16 * count) += output blocks `from..from + count` of the matrix, `beside` at a time,
  // as far as `blocks` of its input blocks from `input_block` on go; `out` moves on behind them.
  void product(int rows, const TrimMatrix& m, int64_t from, int64_t count, int beside,
               int64_t input_block, int blocks) {
    const uint8_t* block =
        m.data + from * Packed::output_stride(m) + input_block * Packed::input_stride(m);
    while (count > 0) {
      const int n = count < beside ? 1 : beside;
      if (!m.input_major) ahead = n == 1 ? kAhead : n * Packed::output_stride(m);
      if (m.bits == 4)
        run<4>(rows, n, m, block, blocks);
      else
        run<8>(rows, n, m, block, blocks);
      for (int i = 0; i < rows; ++i) out[i] += 16 * n;
      block += n * Packed::output_stride(m);
      count -= n;
    }
  }

  // out[row][0..16) = one output block of a preview times row.
  void glance(int rows, const uint8_t* block, const int32_t* planes, int blocks) {
    static_assert(kRows == 4, "one case for each number of rows");
    switch (rows) {
      case 1: return Isa::template glance<1>(block, planes, blocks, *this);
      case 2: return Isa::template glance<2>(block, planes, blocks, *this);
      case 3: return Isa::template glance<3>(block, planes, blocks, *this);
      case 4: return Isa::template glance<4>(block, planes, blocks, *this);
    }
  }

 private:
  template <int BITS>
  void run(int rows, int beside, const TrimMatrix& m, const uint8_t* block, int blocks) {
    if (beside == 1) return run<1, BITS>(rows, m, block, blocks);
    run<Isa::kBeside, BITS>(rows, m, block, blocks);
  }

  template <int N, int BITS>
  void run(int rows, const TrimMatrix& m, const uint8_t* block, int blocks) {
    static_assert(kRows == 4, "one case for each number of rows");
    const int64_t beside = Packed::output_stride(m), stride = Packed::input_stride(m);
    switch (rows) {
      case 1: return Isa::template tile<1, N, BITS>(block, beside, stride, blocks, *this);
      case 2: return Isa::template tile<2, N, BITS>(block, beside, stride, blocks, *this);
      case 3: return Isa::template tile<3, N, BITS>(block, beside, stride, blocks, *this);
      case 4: return Isa::template tile<4, N, BITS>(block, beside, stride, blocks, *this);
    }
  }
};

// How many output blocks are worked on at a time. With few rows memory sets the pace, and one after
// the other is how it reads best.
TRIM_INLINE int beside(int rows) { return rows > kRows ? Isa::kBeside : 1; }

// Rows that a matrix is read for: rows[0..count), whose inputs reach `width[i]`, falling (null:
// all inputs).
struct Readers {
  const int32_t *rows, *width;
  int count;
  Readers some(int first, int n) const { return {rows + first, width ? width + first : width, n}; }
  int64_t reach(const TrimMatrix& m, int i) const { return up(width ? width[i] : m.inputs, 32) / 32; }
};

// out[row][0..16 * count) += output blocks `from..from + count`. `place(row)` is where they start.
template <class Place>
static void tiles(const TrimMatrix& matrix, int64_t from, int64_t count, const Quantised& inputs,
                  const Readers& readers, const Place& place) {
  for (int first = 0; first < readers.count; first += kRows) {
    const int n = least(readers.count - first, kRows);
    Tile tile;
    for (int m = 0; m < n; ++m) {
      tile.input(m, inputs, readers.rows[first + m]);
      tile.out[m] = place(readers.rows[first + m]);
    }
    tile.product(n, matrix, from, count, beside(readers.count), 0,
                 (int)readers.reach(matrix, first));
  }
}

constexpr int kFewRows = 16;
constexpr int kTogether = 64;  // rows whose inputs stay in the cache from block to block

// Whether so few rows read the matrix that memory sets the pace, and input blocks lie together.
TRIM_INLINE bool streamed(const TrimMatrix& matrix, int rows) {
  return matrix.input_major && rows <= kFewRows;
}

// The same for output blocks `begin..end`, in the order in which the matrix lies in memory.
template <class Place>
static void output_blocks(const TrimMatrix& matrix, int64_t begin, int64_t end,
                          const Quantised& inputs, const Readers& readers, const Place& place) {
  constexpr int kStream = 8;  // input blocks read side by side
  const int step = beside(readers.count);
  if (!streamed(matrix, readers.count)) {
    for (int first = 0; first < readers.count; first += kTogether)
      for (int64_t b = begin; b < end; b += step)
        tiles(matrix, b, least(end - b, step), inputs,
              readers.some(first, least(readers.count - first, kTogether)),
              [&](int32_t row) { return place(row) + 16 * (b - begin); });
    return;
  }
  // Few rows: stream the input blocks in order; outputs gather in memory, which is in the cache.
  const int64_t all = readers.count ? readers.reach(matrix, 0) : 0;
  for (int64_t from = 0; from < all; from += kStream) {
    Tile group[kFewRows / kRows];
    int sizes[kFewRows / kRows], blocks[kFewRows / kRows], groups = 0;
    for (int first = 0; first < readers.count; first += kRows, ++groups) {
      const int64_t reach = readers.reach(matrix, first);
      if (reach <= from) break;
      blocks[groups] = least(reach - from, kStream);
      sizes[groups] = least(readers.count - first, kRows);
      group[groups].ahead = kStream * Packed::input_stride(matrix);
      for (int m = 0; m < sizes[groups]; ++m) {
        group[groups].input(m, inputs, readers.rows[first + m], from);
        group[groups].out[m] = place(readers.rows[first + m]);
      }
    }
    for (int64_t b = begin; b < end; b += step)
      for (int g = 0; g < groups; ++g)
        group[g].product(sizes[g], matrix, b, least(end - b, step), step, from, blocks[g]);
  }
}
