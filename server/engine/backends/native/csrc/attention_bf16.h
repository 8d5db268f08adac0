// Attention's arithmetic in products of bf16 numbers, two at a time, summed in fp32.
//
// Queries and weights are rounded to bf16, as keys and values are in the cache.

typedef uint32_t Pair;  // two bf16 numbers, the first in the low half

TRIM_INLINE __m512 dot(__m512 sum, Pair pair, __m512i pairs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)pairs);
}

// `count` numbers, a multiple of 32.
TRIM_INLINE void pack(const float* from, int count, Pair* to) {
  for (int i = 0; i < count; i += 32)
    _mm512_storeu_si512(to + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16),
                                                                 _mm512_loadu_ps(from + i)));
}

// turned[d][0..kSlots) = dimensions 2d and 2d + 1 of sixteen slots of `wide` numbers.
TRIM_INLINE void turn(const uint16_t* slots, int wide, Pair* turned) {
  for (int d = 0; d < wide; d += 32, turned += 16 * kSlots) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(slots + i * wide + d);
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
      Pair* out = turned + j * kSlots;
      _mm512_storeu_si512(out, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
      _mm512_storeu_si512(out + 4 * kSlots, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
      _mm512_storeu_si512(out + 8 * kSlots, _mm512_shuffle_i32x4(even[0], even[1], 0xdd));
      _mm512_storeu_si512(out + 12 * kSlots, _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd));
    }
  }
}

// scores[r][0..kSlots * TILES) = queries[r] . keys * scale, for ROWS rows side by side.
template <int ROWS, int TILES>
TRIM_INLINE void score(const Pair* queries, const Pair* turned, int wide, float scale,
                       float* scores) {
  __m512 sum[ROWS][TILES];
  const int pairs = wide / 2;
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) sum[r][t] = _mm512_setzero_ps();
  for (int d = 0; d < pairs; ++d) {
    __m512i keys[TILES];
    for (int t = 0; t < TILES; ++t)
      keys[t] = _mm512_loadu_si512(turned + (t * pairs + d) * kSlots);
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t) sum[r][t] = dot(sum[r][t], queries[r * pairs + d], keys[t]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      Isa::write(scores + r * kChunk + t * kSlots, Isa::times(sum[r][t], scale));
}

template <int TILES>
TRIM_INLINE void score_rows(const Pair* queries, int rows, const Pair* turned, int wide,
                            float scale, float* scores) {
  for (int r = 0; r < rows; r += 4, scores += 4 * kChunk, queries += 2 * wide) {
    switch (rows - r) {
      case 1: score<1, TILES>(queries, turned, wide, scale, scores); break;
      case 2: score<2, TILES>(queries, turned, wide, scale, scores); break;
      case 3: score<3, TILES>(queries, turned, wide, scale, scores); break;
      default: score<4, TILES>(queries, turned, wide, scale, scores);
    }
  }
}

// `n` slots of keys or values as rows of `wide` numbers, the missing ones of `room` as 0.
template <class Load>
TRIM_INLINE const uint16_t* in_rows(int n, int least_rows, int dim, int wide, Load load,
                                    Local& scratch) {
  uint16_t* rows = scratch.narrow.fit((int64_t)least_rows * wide);
  float* line = scratch.values.fit(wide);
  memset(line, 0, wide * sizeof(float));
  for (int i = 0; i < n; ++i) {
    load(i, line);
    pack(line, wide, (Pair*)(rows + (int64_t)i * wide));
  }
  if (n < least_rows) memset(rows + (int64_t)n * wide, 0, (int64_t)(least_rows - n) * wide * 2);
  return rows;
}

TRIM_INLINE void score_chunk(const Heads& heads, const float* const* queries, int rows,
                             int64_t slot, int count, float scale, Local& scratch, float* scores) {
  constexpr int kTiles = 2;
  const int dim = heads.dim(), wide = up(dim, 32), pairs = wide / 2;
  Pair* turned = scratch.pairs.fit((int64_t)kTiles * pairs * kSlots + (int64_t)rows * pairs);
  Pair* packed = turned + (int64_t)kTiles * pairs * kSlots;
  float* line = scratch.turned.fit(wide);
  memset(line, 0, wide * sizeof(float));
  for (int r = 0; r < rows; ++r) {
    memcpy(line, queries[r], dim * sizeof(float));
    pack(line, wide, packed + (int64_t)r * pairs);
  }
  for (int at = 0; at < count; at += kTiles * kSlots) {
    int tiles = 0;
    for (; tiles < kTiles && at + tiles * kSlots < count; ++tiles) {
      const int64_t there = slot + at + tiles * kSlots;
      const int n = least(count - at - tiles * kSlots, kSlots);
      heads.fetch_values(there);
      const uint16_t* keys = n == kSlots ? heads.cached_keys(there, 32) : nullptr;
      if (!keys)
        keys = in_rows(n, kSlots, dim, wide,
                       [&](int i, float* to) { heads.key(there + i, to); }, scratch);
      turn(keys, wide, turned + (int64_t)tiles * pairs * kSlots);
    }
    if (tiles == 1)
      score_rows<1>(packed, rows, turned, wide, scale, scores + at);
    else
      score_rows<kTiles>(packed, rows, turned, wide, scale, scores + at);
  }
}

// out[r][at..at + 16 * PARTS) += the values of all slots, weighted by weights[r], for ROWS rows.
template <int ROWS, int PARTS>
TRIM_INLINE void mix(const Pair* weights, int pairs, const Pair* values, int wide, Partial* out,
                     int at) {
  __m512 sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = Isa::read(out[r].mixed + at + 16 * i);
  for (int j = 0; j < pairs; ++j) {
    __m512i value[PARTS];
    for (int i = 0; i < PARTS; ++i)
      value[i] = _mm512_loadu_si512(values + (int64_t)j * wide + at + 16 * i);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < PARTS; ++i)
        sum[r][i] = dot(sum[r][i], weights[r * (kChunk / 2) + j], value[i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < PARTS; ++i) Isa::write(out[r].mixed + at + 16 * i, sum[r][i]);
}

template <int ROWS>
TRIM_INLINE void mix_all(const Pair* weights, int pairs, const Pair* values, int wide, int held,
                         Partial* out) {
  int at = 0;
  for (; at + 64 <= held; at += 64) mix<ROWS, 4>(weights, pairs, values, wide, out, at);
  for (; at < held; at += 16) mix<ROWS, 1>(weights, pairs, values, wide, out, at);
}

template <class Meanwhile>
TRIM_INLINE void mix_chunk(const Heads& heads, const float* scores, int rows, int64_t slot,
                           int count, Local& scratch, Partial* out, Meanwhile meanwhile) {
  const int dim = heads.dim(), wide = up(dim, 32), held = heads.wide();
  const int pairs = (count + 1) / 2;
  Pair* values = scratch.pairs.fit((int64_t)pairs * wide + (int64_t)rows * (kChunk / 2));
  Pair* weights = values + (int64_t)pairs * wide;
  for (int r = 0; r < rows; ++r)
    pack(scores + (int64_t)r * kChunk, up(count, 32), weights + r * (kChunk / 2));
  // Neighbouring slots side by side, dimension by dimension.
  alignas(64) uint16_t sides[2][32];
  for (int i = 0; i < 32; ++i)
    for (int half = 0; half < 2; ++half)
      sides[half][i] = (uint16_t)(16 * half + i / 2 + 32 * (i % 2));
  const __m512i low = _mm512_load_si512(sides[0]), high = _mm512_load_si512(sides[1]);
  for (int at = 0; at < count; at += kSlots) {
    meanwhile(at);
    const int n = least(count - at, kSlots);
    const uint16_t* from = n % 2 ? nullptr : heads.cached_values(slot + at, 32);
    if (!from)
      from = in_rows(n, n + n % 2, dim, wide,
                     [&](int i, float* to) { heads.value(slot + at + i, to); }, scratch);
    Pair* to = values + (int64_t)at / 2 * wide;
    for (int i = 0; i < n; i += 2, from += 2 * wide, to += wide)
      for (int d = 0; d < wide; d += 32) {
        const __m512i a = _mm512_loadu_si512(from + d), b = _mm512_loadu_si512(from + wide + d);
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, low, b));
        _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(a, high, b));
      }
  }
  for (int r = 0; r < rows; r += 4, weights += 4 * (kChunk / 2), out += 4) {
    switch (rows - r) {
      case 1: mix_all<1>(weights, pairs, values, wide, held, out); break;
      case 2: mix_all<2>(weights, pairs, values, wide, held, out); break;
      case 3: mix_all<3>(weights, pairs, values, wide, held, out); break;
      default: mix_all<4>(weights, pairs, values, wide, held, out);
    }
  }
}
