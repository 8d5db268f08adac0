// `struct Isa` for AVX2, and for AVX-VNNI where TRIM_DPBUSD names its dot product.
//
// Registers in dot products: 8 outputs x 4 inputs of int8.

#include "arch/x86/x86-inl.h"

// Keep the order of instructions: the compiler would compute all products first and spill them.
#define TRIM_IN_ORDER(x) asm volatile("" : "+x"(x))

struct Isa : X86, PairOfVectors<X86> {
  static constexpr int kTileBlocks = 1;  // output blocks of a tile
  static constexpr int kValueRows = 1;   // rows of attention whose values are summed at a time
  static constexpr int kScoreTiles = 1;  // tiles of 16 keys that are scored at a time

  // out[m][0..16) += product of one output block and `blocks` input blocks with row m.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* block, int64_t, int64_t input_stride, int blocks,
                        const TileRows& in) {
    for (int half = 0; half < 2; ++half) {
      __m256 acc[M];
      for (int m = 0; m < M; ++m) acc[m] = _mm256_loadu_ps(in.out[m] + 8 * half);
      const uint8_t* b = block + 32 * half;
      for (int k = 0; k < blocks; ++k, b += input_stride) {
        __m256i sum[M];
        dot<M, BITS>(b, in.x, 32 * k, sum);
        scale<M, BITS>(b - 32 * half, half, k, in, sum, acc);
      }
      for (int m = 0; m < M; ++m) _mm256_storeu_ps(in.out[m] + 8 * half, acc[m]);
    }
  }

  // out[m][0..16) = the codes of one output block of a head screening times row m of the inputs.
  template <int M>
  TRIM_INLINE void coarse_dot(const uint8_t* block, const int32_t* planes, int blocks,
                              const TileRows& in) {
    for (int half = 0; half < 2; ++half) {
      __m256 acc[M];
      for (int m = 0; m < M; ++m) acc[m] = _mm256_setzero_ps();
      const uint8_t* b = block + 32 * half;
      for (int k = 0; k < blocks; ++k) {
        __m256i sum[M];
        for (int m = 0; m < M; ++m) sum[m] = _mm256_setzero_si256();
        for (int p = 0; p < planes[k]; ++p, b += 128) {
          __m256i plane[M];
          plane_dot<M>(b, in.x, 32 * k, plane);
          for (int m = 0; m < M; ++m)
            sum[m] = _mm256_add_epi32(_mm256_slli_epi32(sum[m], 2), plane[m]);
        }
        for (int m = 0; m < M; ++m)
          acc[m] =
              _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m]), _mm256_set1_ps(in.scales[m][k]), acc[m]);
      }
      for (int m = 0; m < M; ++m) _mm256_storeu_ps(in.out[m] + 8 * half, acc[m]);
    }
  }

 private:
  // sum[m] = dot products of one plane of a head screening, 2 bits of each code.
  template <int M>
  TRIM_INLINE void plane_dot(const uint8_t* b, const int8_t* const* x, int at, __m256i* sum) {
    for (int m = 0; m < M; ++m) sum[m] = _mm256_setzero_si256();
    for (int line = 0; line < 2; ++line) {
      const __m256i raw = _mm256_loadu_si256((const __m256i*)(b + 64 * line));
      for (int t = 0; t < 4; ++t) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi16(raw, 2 * t), _mm256_set1_epi8(3));
        for (int m = 0; m < M; ++m) {
          const __m256i inputs = broadcast(x[m] + at + 16 * line + 4 * t);
#ifdef TRIM_DPBUSD
          sum[m] = TRIM_DPBUSD(sum[m], code, inputs);
#else
          sum[m] = _mm256_add_epi16(sum[m], _mm256_maddubs_epi16(code, inputs));
#endif
          TRIM_IN_ORDER(sum[m]);
        }
      }
    }
#ifndef TRIM_DPBUSD
    for (int m = 0; m < M; ++m) sum[m] = _mm256_madd_epi16(sum[m], _mm256_set1_epi16(1));
#endif
  }

  TRIM_INLINE __m256i broadcast(const int8_t* p) { return _mm256_set1_epi32(load_int32(p)); }

  template <int M, int BITS>
  TRIM_INLINE void dot(const uint8_t* b, const int8_t* const* x, int at, __m256i* sum) {
    for (int m = 0; m < M; ++m) sum[m] = _mm256_setzero_si256();
    if constexpr (BITS == 4) {
      const __m256i mask = _mm256_set1_epi8(15);
      for (int c = 0; c < 4; ++c) {
        const __m256i raw = _mm256_load_si256((const __m256i*)(b + 64 * c));
        const __m256i low = _mm256_and_si256(raw, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
        for (int m = 0; m < M; ++m) {
          const __m256i first = broadcast(x[m] + at + 4 * c);
          const __m256i second = broadcast(x[m] + at + 16 + 4 * c);
#ifdef TRIM_DPBUSD
          sum[m] = TRIM_DPBUSD(sum[m], low, first);
          sum[m] = TRIM_DPBUSD(sum[m], high, second);
#else
          // No overflow: 8 pairs of products of at most 15 * 127 stay below 2^15.
          sum[m] = _mm256_add_epi16(sum[m], _mm256_maddubs_epi16(low, first));
          TRIM_IN_ORDER(sum[m]);
          sum[m] = _mm256_add_epi16(sum[m], _mm256_maddubs_epi16(high, second));
#endif
          TRIM_IN_ORDER(sum[m]);
        }
      }
#ifndef TRIM_DPBUSD
      for (int m = 0; m < M; ++m) sum[m] = _mm256_madd_epi16(sum[m], _mm256_set1_epi16(1));
#endif
    } else {
      for (int c = 0; c < 8; ++c) {
        const __m256i w = _mm256_load_si256((const __m256i*)(b + 64 * c));
        const __m256i size = _mm256_abs_epi8(w);
        for (int m = 0; m < M; ++m) {
          const __m256i v = _mm256_sign_epi8(broadcast(x[m] + at + 4 * c), w);
#ifdef TRIM_DPBUSD
          sum[m] = TRIM_DPBUSD(sum[m], size, v);
#else
          const __m256i pairs = _mm256_maddubs_epi16(size, v);
          sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
          TRIM_IN_ORDER(sum[m]);
        }
      }
    }
  }

  template <int M, int BITS>
  TRIM_INLINE void scale(const uint8_t* block, int half, int k, const TileRows& in,
                         const __m256i* sum, __m256* acc) {
    if constexpr (BITS == 4) {
      const uint16_t* s = (const uint16_t*)(block + 256) + 8 * half;
      const __m256 d = (__m256)load_half(s), low = (__m256)load_half(s + 16);
      for (int m = 0; m < M; ++m) {
        const __m256 step = _mm256_mul_ps(d, _mm256_set1_ps(in.scales[m][k]));
        acc[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m]), step, acc[m]);
        acc[m] = _mm256_fmadd_ps(low, _mm256_set1_ps(in.sums[m][k]), acc[m]);
      }
    } else {
      const __m256 d = (__m256)load_half((const uint16_t*)(block + 512) + 8 * half);
      for (int m = 0; m < M; ++m) {
        const __m256 step = _mm256_mul_ps(d, _mm256_set1_ps(in.scales[m][k]));
        acc[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m]), step, acc[m]);
      }
    }
  }
};
