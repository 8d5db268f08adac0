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
    v8f v[4], most = splat(0);
    for (int i = 0; i < 4; ++i) {
      v[i] = load8(p + 8 * i);
      most = max8(most, max8(v[i], -v[i]));
    }
    const float highest = highest8(most), scale = highest / 127.0f;
    const v8f inverse = splat(highest > 0 ? 127.0f / highest : 0.0f);
    for (int i = 0; i < 4; ++i) v[i] *= inverse;
    const int32_t sum = Isa::store_int8(codes + 32 * block, v);
    scales[block] = scale;
    sums[block] = scale * (float)sum;
    excess[block] = -128 * sum;
  }
}

// What lies beyond a row's reach in block `block` counts as 0.
TRIM_INLINE void nothing(Quantised& q, int64_t row, int64_t block) {
  memset(q.code(row) + 32 * block, 0, 32);
  q.scale(row)[block] = q.sum(row)[block] = 0.0f;
  q.excess(row)[block] = 0;
}

// A group of rows for one output block.
struct Tile : Lines {
  void input(int m, const Quantised& q, int64_t row, int64_t block = 0) {
    x[m] = q.code(row) + 32 * block;
    scales[m] = q.scale(row) + block;
    sums[m] = q.sum(row) + block;
    excess[m] = q.excess(row) + block;
  }

  template <int BITS>
  void run(int rows, const uint8_t* block, int64_t stride, int blocks) {
    static_assert(Isa::kRows <= 8, "a tile holds eight rows");
    switch (rows) {
      case 1: return Isa::template tile<1, BITS>(block, stride, blocks, *this);
      case 2: return Isa::template tile<2, BITS>(block, stride, blocks, *this);
      case 3: return Isa::template tile<3, BITS>(block, stride, blocks, *this);
      case 4: return Isa::template tile<4, BITS>(block, stride, blocks, *this);
    }
    if constexpr (Isa::kRows == 8) {
      switch (rows) {
        case 5: return Isa::template tile<5, BITS>(block, stride, blocks, *this);
        case 6: return Isa::template tile<6, BITS>(block, stride, blocks, *this);
        case 7: return Isa::template tile<7, BITS>(block, stride, blocks, *this);
        case 8: return Isa::template tile<8, BITS>(block, stride, blocks, *this);
      }
    }
  }

  void product(int rows, const TrimMatrix& m, int64_t output_block, int64_t input_block,
               int blocks) {
    const uint8_t* block = m.data + output_block * Packed::output_stride(m) +
                           input_block * Packed::input_stride(m);
    const int64_t stride = Packed::input_stride(m);
    if (m.bits == 4)
      run<4>(rows, block, stride, blocks);
    else
      run<8>(rows, block, stride, blocks);
  }
};

// out[row][0..16) += output block `block` of the matrix, for rows[0..count) whose inputs reach
// `width[i]`, falling (null: all inputs). `place(row)` is where row's 16 outputs start.
template <class Place>
static void output_block(const TrimMatrix& matrix, int64_t block, const Quantised& inputs,
                         const int32_t* rows, const int32_t* width, int count,
                         const Place& place) {
  for (int begin = 0; begin < count; begin += Isa::kRows) {
    const int n = count - begin < Isa::kRows ? count - begin : Isa::kRows;
    Tile tile;
    for (int m = 0; m < n; ++m) {
      tile.input(m, inputs, rows[begin + m]);
      tile.out[m] = place(rows[begin + m]);
    }
    const int64_t reach = width ? width[begin] : matrix.inputs;
    tile.product(n, matrix, block, 0, (int)(up(reach, 32) / 32));
  }
}

// Whether so few rows read the matrix that memory sets the pace, and input blocks lie together.
TRIM_INLINE bool streamed(const TrimMatrix& matrix, int rows) {
  return matrix.input_major && rows <= 2 * Isa::kRows;
}

// The same for output blocks `begin..end`, in the order in which the matrix lies in memory.
template <class Place>
static void output_blocks(const TrimMatrix& matrix, int64_t begin, int64_t end,
                          const Quantised& inputs, const int32_t* rows, const int32_t* width,
                          int count, const Place& place) {
  constexpr int kStream = 8;  // input blocks read side by side
  if (!streamed(matrix, count)) {
    for (int64_t b = begin; b < end; ++b)
      output_block(matrix, b, inputs, rows, width, count,
                   [&](int32_t row) { return place(row) + 16 * (b - begin); });
    return;
  }
  // Few rows: stream the input blocks in order; outputs gather in memory, which is in the cache.
  const int64_t all = up(width ? (count ? width[0] : 0) : matrix.inputs, 32) / 32;
  for (int64_t from = 0; from < all; from += kStream) {
    Tile tiles[2];
    int sizes[2], blocks[2], groups = 0;
    for (int first = 0; first < count; first += Isa::kRows, ++groups) {
      const int64_t reach = up(width ? width[first] : matrix.inputs, 32) / 32;
      if (reach <= from) break;
      blocks[groups] = (int)((reach < from + kStream ? reach : from + kStream) - from);
      sizes[groups] = count - first < Isa::kRows ? count - first : Isa::kRows;
      tiles[groups].ahead = kStream * Packed::input_stride(matrix);
      for (int m = 0; m < sizes[groups]; ++m) {
        tiles[groups].input(m, inputs, rows[first + m], from);
        tiles[groups].out[m] = place(rows[first + m]);
      }
    }
    for (int64_t b = begin; b < end; ++b)
      for (int g = 0; g < groups; ++g) {
        tiles[g].product(sizes[g], matrix, b, from, blocks[g]);
        for (int m = 0; m < sizes[g]; ++m) tiles[g].out[m] += 16;
      }
  }
}
