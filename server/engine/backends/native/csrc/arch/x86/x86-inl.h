// Operations that all x86 instruction sets here have: conversions of 8 numbers, and fused
// multiply-add.

struct X86 {
  TRIM_INLINE v8f load_half(const uint16_t* p) {
    return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  TRIM_INLINE v8f load_int8(const int8_t* p) {
    return (v8f)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  TRIM_INLINE v8f fma(v8f a, v8f b, v8f c) {
    return (v8f)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  }
  TRIM_INLINE v8f exp(v8f x) { return exp8(x); }
  // Round 32 numbers of -127..127 to int8, to nearest, and return the sum of the codes.
  TRIM_INLINE int32_t store_int8(int8_t* p, const v8f* v) {
    __m256i i[4];
    for (int j = 0; j < 4; ++j) i[j] = _mm256_cvtps_epi32((__m256)v[j]);
    const __m256i pairs =
        _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(pairs, order));
    const __m256i all =
        _mm256_add_epi32(_mm256_add_epi32(i[0], i[1]), _mm256_add_epi32(i[2], i[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }
  TRIM_INLINE int32_t load_int32(const int8_t* p) {  // four codes, to be broadcast
    int32_t found;
    memcpy(&found, p, 4);
    return found;
  }
};
