// The low-rank products of corrections, over the active rows of a sub-block:
//
//   inner_product[row]  = inner(inputs[row])
//   output[row]        += outer(inner_product[row])
//
// Rows with the same matrix are multiplied together, at most kTileRows at a time.

// Call `body(matrix, first, last)` for the active rows `from..to`, at most kTileRows at a time
// that have the same `matrix(correction)`. Rows without one are left out.
template <class Find, class Body>
static void for_each_matrix(const ActiveRows& active, int64_t from, int64_t to,
                            const Find& matrix, const Body& body) {
  for (const CorrectionRun& run : active.runs) {
    const TrimMatrix* shared = run.correction ? matrix(*run.correction) : nullptr;
    if (!shared) continue;
    const int64_t end = run.last < to ? run.last : to;
    for (int64_t first = max_int64(run.first, from); first < end; first += kTileRows)
      body(*shared, first, first + kTileRows < end ? first + kTileRows : end);
  }
}

// out[row] = inner(inputs[row]) for the active rows `from..to`. `line` is scratch memory,
// [kTileRows][rank].
template <class Find>
static void multiply_inner(const ActiveRows& active, const int32_t* widths, int64_t from,
                           int64_t to, const QuantisedRows& inputs, QuantisedRows& out,
                           float* line, const Find& matrix) {
  const int32_t* rows = active.row.get();
  for_each_matrix(
      active, from, to, matrix, [&](const TrimMatrix& m, int64_t first, int64_t last) {
        const int64_t rank = round_up(m.outputs, 16);
        memset(line, 0, (last - first) * rank * sizeof(float));
        Tile tile;
        for (int64_t i = first; i < last; ++i) {
          tile.set_input(i - first, inputs, rows[i]);
          tile.out[i - first] = line + (i - first) * rank;
        }
        const int64_t width = widths ? widths[first] : m.inputs;
        tile.multiply_add(last - first, m, 0, rank / 16, 1, 0, round_up(width, 32) / 32);
        for (int64_t i = first; i < last; ++i)
          quantise(line + (i - first) * rank, m.outputs, out, rows[i]);
      });
}

// place(i)[0..16) += output block `block` of outer(inner[row]) for the active rows `from..to`.
template <class Find, class Place>
static void add_outer(const ActiveRows& active, int64_t from, int64_t to,
                      const QuantisedRows& inner, int64_t block, const Find& matrix,
                      const Place& place) {
  for_each_matrix(
      active, from, to, matrix, [&](const TrimMatrix& m, int64_t first, int64_t last) {
        if (16 * block >= m.outputs) return;
        Tile tile;
        for (int64_t i = first; i < last; ++i) {
          tile.set_input(i - first, inner, active.row.get()[i]);
          tile.out[i - first] = place(i);
        }
        tile.multiply_add(last - first, m, block, 1, 1, 0, PackedLayout::input_blocks(m));
      });
}
