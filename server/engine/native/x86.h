// What every x86 path has: conversions of eight numbers, and fused multiplication.
#pragma once
#include <immintrin.h>

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
  TRIM_INLINE void store_int8(int8_t* p, v8f v) {  // rounds to nearest; |v| <= 127
    const __m256i i = _mm256_cvtps_epi32((__m256)v);
    const __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(s, s));
  }
  TRIM_INLINE int32_t four(const int8_t* p) {  // neighbours, to be repeated all over a register
    int32_t found;
    memcpy(&found, p, 4);
    return found;
  }
};
