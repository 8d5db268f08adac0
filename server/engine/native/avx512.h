// Dot products for AVX-512 VNNI: 16 outputs in a register, four inputs of each side by side.
#pragma once
#include "x86.h"

struct Isa : X86 {
  static constexpr int kRows = 8;

  template <int M, int BITS>
  TRIM_INLINE void tile(const uint8_t* b, int64_t stride, int blocks, const int8_t* const* x,
                        const float* const* scales, const float* const* sums, float* const* out) {
    __m512 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = _mm512_loadu_ps(out[m]);
    for (int k = 0; k < blocks; ++k, b += stride) {
      __m512i sum[M];
      for (int m = 0; m < M; ++m) sum[m] = _mm512_setzero_si512();
      if constexpr (BITS == 4) {
        const __m512i mask = _mm512_set1_epi8(15);
        for (int c = 0; c < 4; ++c) {
          const __m512i raw = _mm512_load_si512(b + 64 * c);
          const __m512i low = _mm512_and_si512(raw, mask);
          const __m512i high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
          for (int m = 0; m < M; ++m) {
            sum[m] = _mm512_dpbusd_epi32(sum[m], low, broadcast(x[m] + 32 * k + 4 * c));
            sum[m] = _mm512_dpbusd_epi32(sum[m], high, broadcast(x[m] + 32 * k + 16 + 4 * c));
          }
        }
        const __m512 d = halves(b + 256), low = halves(b + 288);
        for (int m = 0; m < M; ++m) {
          const __m512 step = _mm512_mul_ps(d, _mm512_set1_ps(scales[m][k]));
          acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), step, acc[m]);
          acc[m] = _mm512_fmadd_ps(low, _mm512_set1_ps(sums[m][k]), acc[m]);
        }
      } else {
        // The unsigned side is the weight; flipping its top bit adds 128, taken off again below.
        __m512i excess[M];
        for (int m = 0; m < M; ++m) excess[m] = _mm512_setzero_si512();
        const __m512i top = _mm512_set1_epi8((char)0x80);
        for (int c = 0; c < 8; ++c) {
          const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(b + 64 * c), top);
          for (int m = 0; m < M; ++m) {
            const __m512i v = broadcast(x[m] + 32 * k + 4 * c);
            sum[m] = _mm512_dpbusd_epi32(sum[m], w, v);
            excess[m] = _mm512_dpbusd_epi32(excess[m], top, v);
          }
        }
        const __m512 d = halves(b + 512);
        for (int m = 0; m < M; ++m) {
          const __m512 step = _mm512_mul_ps(d, _mm512_set1_ps(scales[m][k]));
          const __m512i exact = _mm512_sub_epi32(sum[m], excess[m]);
          acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), step, acc[m]);
        }
      }
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(out[m], acc[m]);
  }

 private:
  TRIM_INLINE __m512i broadcast(const int8_t* p) {
    return _mm512_set1_epi32(four(p));
  }
  TRIM_INLINE __m512 halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)p));
  }
};
