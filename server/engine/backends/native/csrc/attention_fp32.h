// Attention's arithmetic in fp32, for processors that do not multiply bf16.

// turned[d][0..kSlots) = the keys of `n` slots; those of missing slots are 0. `lines` is room.
TRIM_INLINE void turn(const Heads& heads, int64_t slot, int n, float* lines, float* turned) {
  const int wide = heads.wide();
  const uint16_t* cached = heads.cached_keys(slot, 32);
  if (Isa::kTurns && n == kSlots && cached) return Isa::turn(cached, heads.dim(), turned);
  for (int half = 0; half < kSlots; half += 8) {
    for (int i = 0; i < 8; ++i) {
      if (half + i < n)
        heads.key(slot + half + i, lines + i * wide);
      else
        memset(lines + i * wide, 0, wide * sizeof(float));
    }
    for (int d = 0; d < wide; d += 8) {
      v8f block[8];
      for (int i = 0; i < 8; ++i) block[i] = load8(lines + i * wide + d);
      transpose8(block);
      for (int i = 0; i < 8; ++i) store8(turned + (d + i) * kSlots + half, block[i]);
    }
  }
}

// scores[r][0..kSlots * TILES) = queries[r] . keys * scale, for ROWS rows side by side.
template <int ROWS, int TILES>
TRIM_INLINE void score(const float* const* queries, const float* turned, int dim, int wide,
                       float scale, float* scores) {
  Isa::Line sum[ROWS][TILES];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) sum[r][t] = Isa::zeros();
  for (int d = 0; d < dim; ++d) {
    Isa::Line keys[TILES];
    for (int t = 0; t < TILES; ++t) keys[t] = Isa::read(turned + (t * wide + d) * kSlots);
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t) sum[r][t] = Isa::plus(sum[r][t], queries[r][d], keys[t]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      Isa::write(scores + r * kChunk + t * kSlots, Isa::times(sum[r][t], scale));
}

template <int TILES>
TRIM_INLINE void score_rows(const float* const* queries, int rows, const float* turned, int dim,
                            int wide, float scale, float* scores) {
  for (int r = 0; r < rows; r += 4, scores += 4 * kChunk, queries += 4) {
    switch (rows - r) {
      case 1: score<1, TILES>(queries, turned, dim, wide, scale, scores); break;
      case 2: score<2, TILES>(queries, turned, dim, wide, scale, scores); break;
      case 3: score<3, TILES>(queries, turned, dim, wide, scale, scores); break;
      default: score<4, TILES>(queries, turned, dim, wide, scale, scores);
    }
  }
}

// out[r][0..16 * PARTS) += the `n` rows of values, weighted by weights[r], for ROWS rows.
template <int ROWS, int PARTS, class Number>
TRIM_INLINE void mix(const float* weights, int n, const Number* values, int stride,
                     float* const* out, int at) {
  Isa::Line sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = Isa::read(out[r] + at + 16 * i);
  for (int j = 0; j < n; ++j) {
    Isa::Line value[PARTS];
    for (int i = 0; i < PARTS; ++i)
      value[i] = Isa::read(values + (int64_t)j * stride + at + 16 * i);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < PARTS; ++i)
        sum[r][i] = Isa::plus(sum[r][i], weights[r * kChunk + j], value[i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) Isa::write(out[r] + at + 16 * i, sum[r][i]);
}

// The same for all that `stride` holds.
template <int ROWS, class Number>
TRIM_INLINE void mix_all(const float* weights, int n, const Number* values, int stride,
                         float* const* out) {
  int at = 0;
  for (; at + 64 <= stride; at += 64) mix<ROWS, 4>(weights, n, values, stride, out, at);
  for (; at < stride; at += 16) mix<ROWS, 1>(weights, n, values, stride, out, at);
}

template <class Number>
TRIM_INLINE void mix_rows(const float* weights, int rows, int n, const Number* values, int stride,
                          float* const* out) {
  constexpr int kMost = Isa::kMixed;
  for (; rows >= kMost; rows -= kMost, weights += kMost * kChunk, out += kMost)
    mix_all<kMost>(weights, n, values, stride, out);
  if constexpr (kMost == 4) {
    if (rows == 3) mix_all<3>(weights, n, values, stride, out);
    if (rows == 2) mix_all<2>(weights, n, values, stride, out);
    if (rows == 1) mix_all<1>(weights, n, values, stride, out);
  }
}

TRIM_INLINE void score_chunk(const Heads& heads, const float* const* queries, int rows,
                             int64_t slot, int count, float scale, Local& scratch, float* scores) {
  const int wide = heads.wide(), dim = heads.dim();
  constexpr int kTurned = Isa::kTiles * kSlots;
  float* turned = scratch.turned.fit((int64_t)wide * (kTurned + 8));
  float* lines = turned + (int64_t)wide * kTurned;
  for (int at = 0; at < count; at += kTurned) {
    int tiles = 0;
    for (; tiles < Isa::kTiles && at + tiles * kSlots < count; ++tiles) {
      const int there = at + tiles * kSlots;
      heads.fetch_values(slot + there);
      turn(heads, slot + there, least(count - there, kSlots), lines,
           turned + (int64_t)tiles * wide * kSlots);
    }
    if (tiles == 1)
      score_rows<1>(queries, rows, turned, dim, wide, scale, scores + at);
    else
      score_rows<Isa::kTiles>(queries, rows, turned, dim, wide, scale, scores + at);
  }
}

template <class Meanwhile>
TRIM_INLINE void mix_chunk(const Heads& heads, const float* scores, int rows, int64_t slot,
                           int count, Local& scratch, Partial* out, Meanwhile meanwhile) {
  const int wide = heads.wide();
  float* values = scratch.values.fit((int64_t)kSlots * wide);
  float** mixed = scratch.mixing.fit(rows);
  for (int r = 0; r < rows; ++r) mixed[r] = out[r].mixed;
  for (int at = 0; at < count; at += kSlots) {
    const int n = least(count - at, kSlots);
    meanwhile(at);
    const uint16_t* cached = heads.cached_values(slot + at, 16);
    if (rows <= Isa::kMixed && cached) {
      mix_rows(scores + at, rows, n, cached, wide, mixed);
      continue;
    }
    for (int i = 0; i < n; ++i) heads.value(slot + at + i, values + (int64_t)i * wide);
    mix_rows(scores + at, rows, n, values, wide, mixed);
  }
}
