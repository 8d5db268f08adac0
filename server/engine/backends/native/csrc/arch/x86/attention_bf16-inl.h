// Attention in products of bf16 numbers, by pairs, summed in fp32 (AVX-512 BF16).
//
// Queries and weights are rounded to bf16. Keys and values are bf16 in the cache, or are rounded.
// A pair is two neighbours of a sum: two dimensions in scores, two slots in sums of values.
//
//   transposed [dim / 2][kSlots] pairs    values [slots / 2][dim] pairs    scores [rows][kChunk]

typedef uint32_t Pair;  // two bf16 numbers, the first in the low half

TRIM_INLINE __m512 dot(__m512 sum, Pair pair, __m512i pairs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)pairs);
}

// Round `count` numbers to bf16. `count` is a multiple of 32.
TRIM_INLINE void pack(const float* from, int count, Pair* to) {
  for (int i = 0; i < count; i += 32)
    _mm512_storeu_si512(to + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16),
                                                                 _mm512_loadu_ps(from + i)));
}

// transposed[d][0..kSlots) = dimensions 2 d and 2 d + 1 of 16 slots [16][padded].
TRIM_INLINE void transpose_keys(const uint16_t* slots, int padded, Pair* transposed) {
  for (int d = 0; d < padded; d += 32, transposed += 16 * kSlots) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(slots + i * padded + d);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int h = 0; h < 2; ++h) {
        a[i + 2 * h] = _mm512_unpacklo_epi64(b[i + h], b[i + 2 + h]);
        a[i + 2 * h + 1] = _mm512_unpackhi_epi64(b[i + h], b[i + 2 + h]);
      }
    // Lane l of a[4 i + j] is pair 4 l + j of slots 4 i to 4 i + 3.
    for (int j = 0; j < 4; ++j) {
      const __m512i even[2] = {_mm512_shuffle_i32x4(a[j], a[4 + j], 0x88),
                               _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88)};
      const __m512i odd[2] = {_mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd),
                              _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd)};
      Pair* out = transposed + j * kSlots;
      _mm512_storeu_si512(out, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
      _mm512_storeu_si512(out + 4 * kSlots, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
      _mm512_storeu_si512(out + 8 * kSlots, _mm512_shuffle_i32x4(even[0], even[1], 0xdd));
      _mm512_storeu_si512(out + 12 * kSlots, _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd));
    }
  }
}

// scores[r][0..kSlots * TILES) = queries[r] . keys * scale, for ROWS rows at a time.
template <int ROWS, int TILES>
TRIM_INLINE void score(const Pair* queries, const Pair* transposed, int padded, float scale,
                       float* scores) {
  __m512 sum[ROWS][TILES];
  const int pairs = padded / 2;
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) sum[r][t] = _mm512_setzero_ps();
  for (int d = 0; d < pairs; ++d) {
    __m512i keys[TILES];
    for (int t = 0; t < TILES; ++t)
      keys[t] = _mm512_loadu_si512(transposed + (t * pairs + d) * kSlots);
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t) sum[r][t] = dot(sum[r][t], queries[r * pairs + d], keys[t]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      Isa::store(scores + r * kChunk + t * kSlots, Isa::multiply(sum[r][t], scale));
}

template <int TILES>
TRIM_INLINE void score_rows(const Pair* queries, int rows, const Pair* transposed, int padded,
                            float scale, float* scores) {
  for (int r = 0; r < rows; r += 4, scores += 4 * kChunk, queries += 2 * padded) {
    switch (rows - r) {
      case 1: score<1, TILES>(queries, transposed, padded, scale, scores); break;
      case 2: score<2, TILES>(queries, transposed, padded, scale, scores); break;
      case 3: score<3, TILES>(queries, transposed, padded, scale, scores); break;
      default: score<4, TILES>(queries, transposed, padded, scale, scores);
    }
  }
}

// Return n slots of keys or values as bf16, [min_rows][padded]; missing rows are 0. `load(i, to)`
// writes slot i in fp32.
template <class Load>
TRIM_INLINE const uint16_t* bf16_rows(int n, int min_rows, int dim, int padded, Load load,
                                      ThreadBuffers& scratch) {
  uint16_t* rows = scratch.bf16.reserve((int64_t)min_rows * padded);
  float* line = scratch.values.reserve(padded);
  memset(line, 0, padded * sizeof(float));
  for (int i = 0; i < n; ++i) {
    load(i, line);
    pack(line, padded, (Pair*)(rows + (int64_t)i * padded));
  }
  if (n < min_rows) memset(rows + (int64_t)n * padded, 0, (int64_t)(min_rows - n) * padded * 2);
  return rows;
}

// scores[r][0..count) = queries[r] . keys * scale, for `count` slots from `slot` on.
TRIM_INLINE void score_chunk(const CachedHead& head, const float* const* queries, int rows,
                             int64_t slot, int count, float scale, ThreadBuffers& scratch,
                             float* scores) {
  constexpr int kTiles = 2;
  const int dim = head.dim(), padded = round_up(dim, 32), pairs = padded / 2;
  Pair* transposed =
      scratch.pairs.reserve((int64_t)kTiles * pairs * kSlots + (int64_t)rows * pairs);
  Pair* packed = transposed + (int64_t)kTiles * pairs * kSlots;
  float* line = scratch.transposed.reserve(padded);
  memset(line, 0, padded * sizeof(float));
  for (int r = 0; r < rows; ++r) {
    memcpy(line, queries[r], dim * sizeof(float));
    pack(line, padded, packed + (int64_t)r * pairs);
  }
  for (int at = 0; at < count; at += kTiles * kSlots) {
    int tiles = 0;
    for (; tiles < kTiles && at + tiles * kSlots < count; ++tiles) {
      const int64_t first = slot + at + tiles * kSlots;
      const int n = min_int(count - at - tiles * kSlots, kSlots);
      head.prefetch_values(first);
      const uint16_t* keys = n == kSlots ? head.bf16_keys(first, 32) : nullptr;
      if (!keys)
        keys = bf16_rows(
            n, kSlots, dim, padded, [&](int i, float* to) { head.key(first + i, to); }, scratch);
      transpose_keys(keys, padded, transposed + (int64_t)tiles * pairs * kSlots);
    }
    if (tiles == 1)
      score_rows<1>(packed, rows, transposed, padded, scale, scores + at);
    else
      score_rows<kTiles>(packed, rows, transposed, padded, scale, scores + at);
  }
}

// out[r][at..at + 16 * PARTS) += sum of weights[r] * values over all pairs of slots, for ROWS rows.
template <int ROWS, int PARTS>
TRIM_INLINE void sum_values_tile(const Pair* weights, int pairs, const Pair* values, int padded,
                                 PartialSoftmax* out, int at) {
  __m512 sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = Isa::load(out[r].values + at + 16 * i);
  for (int j = 0; j < pairs; ++j) {
    __m512i value[PARTS];
    for (int i = 0; i < PARTS; ++i)
      value[i] = _mm512_loadu_si512(values + (int64_t)j * padded + at + 16 * i);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < PARTS; ++i)
        sum[r][i] = dot(sum[r][i], weights[r * (kChunk / 2) + j], value[i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) Isa::store(out[r].values + at + 16 * i, sum[r][i]);
}

// out[r][0..written) += the sums above.
template <int ROWS>
TRIM_INLINE void sum_values_padded(const Pair* weights, int pairs, const Pair* values, int padded,
                                   int written, PartialSoftmax* out) {
  int at = 0;
  for (; at + 64 <= written; at += 64)
    sum_values_tile<ROWS, 4>(weights, pairs, values, padded, out, at);
  for (; at < written; at += 16) sum_values_tile<ROWS, 1>(weights, pairs, values, padded, out, at);
}

// out[r].values += the weighted sum of the values of `count` slots from `slot` on. `scores` holds
// the weights. `prefetch_next(at)` is called before slot + at is read.
template <class Prefetch>
TRIM_INLINE void sum_values(const CachedHead& head, const float* scores, int rows, int64_t slot,
                            int count, ThreadBuffers& scratch, PartialSoftmax* out,
                            Prefetch prefetch_next) {
  const int dim = head.dim(), padded = round_up(dim, 32), written = head.padded_dim();
  const int pairs = (count + 1) / 2;
  Pair* values = scratch.pairs.reserve((int64_t)pairs * padded + (int64_t)rows * (kChunk / 2));
  Pair* weights = values + (int64_t)pairs * padded;
  for (int r = 0; r < rows; ++r)
    pack(scores + (int64_t)r * kChunk, round_up(count, 32), weights + r * (kChunk / 2));
  // Interleave the dimensions of two neighbouring slots.
  alignas(64) uint16_t order[2][32];
  for (int i = 0; i < 32; ++i)
    for (int half = 0; half < 2; ++half)
      order[half][i] = (uint16_t)(16 * half + i / 2 + 32 * (i % 2));
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  for (int at = 0; at < count; at += kSlots) {
    prefetch_next(at);
    const int n = min_int(count - at, kSlots);
    const uint16_t* from = n % 2 ? nullptr : head.bf16_values(slot + at, 32);
    if (!from)
      from = bf16_rows(
          n, n + n % 2, dim, padded, [&](int i, float* to) { head.value(slot + at + i, to); },
          scratch);
    Pair* to = values + (int64_t)at / 2 * padded;
    for (int i = 0; i < n; i += 2, from += 2 * padded, to += padded)
      for (int d = 0; d < padded; d += 32) {
        const __m512i a = _mm512_loadu_si512(from + d), b = _mm512_loadu_si512(from + padded + d);
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, low, b));
        _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(a, high, b));
      }
  }
  for (int r = 0; r < rows; r += 4, weights += 4 * (kChunk / 2), out += 4) {
    switch (rows - r) {
      case 1: sum_values_padded<1>(weights, pairs, values, padded, written, out); break;
      case 2: sum_values_padded<2>(weights, pairs, values, padded, written, out); break;
      case 3: sum_values_padded<3>(weights, pairs, values, padded, written, out); break;
      default: sum_values_padded<4>(weights, pairs, values, padded, written, out);
    }
  }
}
