// `struct Isa` for AVX-512 with VNNI.
//
// Registers in dot products: 16 outputs x 4 inputs of int8.

#include "arch/x86/x86-inl.h"

struct Isa : X86 {
  static constexpr int kTileBlocks = 2, kValueRows = 4, kScoreTiles = 2;

  using v16f = __m512;
  TRIM_INLINE v16f zeros() { return _mm512_setzero_ps(); }
  TRIM_INLINE v16f load(const float* p) { return _mm512_loadu_ps(p); }
  TRIM_INLINE v16f load(const uint16_t* p) {
    return bf16_to_float16(_mm256_loadu_si256((const __m256i*)p));
  }
  TRIM_INLINE void store(float* p, v16f x) { _mm512_storeu_ps(p, x); }
  TRIM_INLINE v16f multiply(v16f x, float factor) {
    return _mm512_mul_ps(x, _mm512_set1_ps(factor));
  }
  TRIM_INLINE v16f multiply_add(v16f sum, float factor, v16f x) {
    return _mm512_fmadd_ps(_mm512_set1_ps(factor), x, sum);
  }

  // Compute e^x to about one unit in the last place, by the polynomial of Cephes' expf.
  TRIM_INLINE v8f exp(v8f x) {
    const __m256 t = _mm256_mul_ps((__m256)x, _mm256_set1_ps(1.44269504f));
    const __m256 n = _mm256_roundscale_ps(t, 0);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), (__m256)x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                    5.0000001201e-1f, 1.0f, 1.0f})
      p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    return (v8f)_mm256_scalef_ps(p, n);
  }

  static constexpr bool kTransposesBf16 = true;

  // transposed[d][0..16) = dimension d of 16 slots [16][dim] of bf16.
  TRIM_INLINE void transpose_bf16(const uint16_t* slots, int dim, float* transposed) {
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int d = 0; d < dim; d += 32, transposed += 32 * 16) {
      __m512i part[2][8];  // [j], lane l: dimension 8 l + j of eight slots
      for (int half = 0; half < 2; ++half) {
        const uint16_t* p = slots + 8 * half * dim + d;
        __m512i a[8], b[8];
        for (int i = 0; i < 8; ++i) a[i] = _mm512_loadu_si512(p + i * dim);
        for (int i = 0; i < 4; ++i) {
          b[2 * i] = _mm512_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
          b[2 * i + 1] = _mm512_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
        }
        for (int h = 0; h < 2; ++h)
          for (int i = 0; i < 2; ++i) {
            a[4 * h + 2 * i] = _mm512_unpacklo_epi32(b[4 * h + i], b[4 * h + 2 + i]);
            a[4 * h + 2 * i + 1] = _mm512_unpackhi_epi32(b[4 * h + i], b[4 * h + 2 + i]);
          }
        for (int i = 0; i < 4; ++i) {
          part[half][2 * i] = _mm512_unpacklo_epi64(a[i], a[4 + i]);
          part[half][2 * i + 1] = _mm512_unpackhi_epi64(a[i], a[4 + i]);
        }
      }
      for (int j = 0; j < 8; ++j) {
        const __m512i low = _mm512_permutex2var_epi64(part[0][j], front, part[1][j]);
        const __m512i high = _mm512_permutex2var_epi64(part[0][j], back, part[1][j]);
        store_dimensions(low, transposed + 16 * j);
        store_dimensions(high, transposed + 16 * (16 + j));
      }
    }
  }

  // out[m][0..16 * N) += product of N output blocks and `blocks` input blocks with row m. Two
  // output blocks at a time share the loaded inputs.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* b, int64_t output_stride, int64_t input_stride, int blocks,
                        const TileRows& in) {
    __m512 acc[M][N];
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) acc[m][n] = _mm512_loadu_ps(in.out[m] + 16 * n);
    for (int k = 0; k < blocks; ++k, b += input_stride) {
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < kBlockBytes<BITS>; i += 64)
          __builtin_prefetch(b + n * output_stride + in.prefetch + i, 0, 2);
      __m512i sum[M][N];
      dot<M, N, BITS>(b, output_stride, in, k, sum);
      for (int n = 0; n < N; ++n) {
        const uint8_t* scales = b + n * output_stride + kCodeBytes<BITS>;
        const __m512 d = load_half16(scales);
        for (int m = 0; m < M; ++m) {
          const __m512 step = _mm512_mul_ps(d, _mm512_set1_ps(in.scales[m][k]));
          acc[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][n]), step, acc[m][n]);
        }
        if constexpr (BITS == 4) {
          const __m512 low = load_half16(scales + 32);
          for (int m = 0; m < M; ++m)
            acc[m][n] = _mm512_fmadd_ps(low, _mm512_set1_ps(in.sums[m][k]), acc[m][n]);
        }
      }
    }
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) _mm512_storeu_ps(in.out[m] + 16 * n, acc[m][n]);
  }

  // out[m][0..16) = the codes of one output block of a head screening times row m of the inputs.
  template <int M>
  TRIM_INLINE void coarse_dot(const uint8_t* b, const int32_t* planes, int blocks,
                              const TileRows& in) {
    __m512 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
    for (int k = 0; k < blocks; ++k) {
      __m512i sum[M];
      for (int m = 0; m < M; ++m) sum[m] = _mm512_setzero_si512();
      for (int p = 0; p < planes[k]; ++p) {
        for (int m = 0; m < M; ++m) sum[m] = _mm512_slli_epi32(sum[m], 2);
        for (int line = 0; line < 2; ++line, b += 64) {
          const __m512i raw = _mm512_loadu_si512(b);
          __builtin_prefetch(b + in.prefetch, 0, 2);
          for (int t = 0; t < 4; ++t) {
            const __m512i code =
                _mm512_and_si512(_mm512_srli_epi16(raw, 2 * t), _mm512_set1_epi8(3));
            for (int m = 0; m < M; ++m)
              sum[m] = _mm512_dpbusd_epi32(sum[m], code,
                                           broadcast(in.x[m] + 32 * k + 16 * line + 4 * t));
          }
        }
      }
      for (int m = 0; m < M; ++m)
        acc[m] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), _mm512_set1_ps(in.scales[m][k]), acc[m]);
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(in.out[m], acc[m]);
  }

 private:
  template <int BITS>
  static constexpr int kCodeBytes = BITS == 4 ? 256 : 512;
  template <int BITS>
  static constexpr int kBlockBytes = BITS == 4 ? 320 : 544;

  template <int M, int N, int BITS>
  TRIM_INLINE void dot(const uint8_t* b, int64_t output_stride, const TileRows& in, int k,
                       __m512i (*sum)[N]) {
    // VNNI multiplies unsigned by signed. With 8 bits the weights are made unsigned by flipping the
    // top bit, which adds 128; the compensation takes that off again.
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n)
        sum[m][n] = BITS == 4 ? _mm512_setzero_si512() : _mm512_set1_epi32(in.compensation[m][k]);
    const __m512i mask = _mm512_set1_epi8(15), top = _mm512_set1_epi8((char)0x80);
    for (int c = 0; c < kCodeBytes<BITS> / 64; ++c) {
      __m512i first[N], second[N];
      for (int n = 0; n < N; ++n) {
        const __m512i raw = _mm512_loadu_si512(b + n * output_stride + 64 * c);
        first[n] = BITS == 4 ? _mm512_and_si512(raw, mask) : _mm512_xor_si512(raw, top);
        second[n] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
      }
      for (int m = 0; m < M; ++m) {
        const int8_t* x = in.x[m] + 32 * k + 4 * c;
        const __m512i low_inputs = broadcast(x);
        for (int n = 0; n < N; ++n)
          sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], first[n], low_inputs);
        if constexpr (BITS == 4) {
          const __m512i high_inputs = broadcast(x + 16);
          for (int n = 0; n < N; ++n)
            sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], second[n], high_inputs);
        }
      }
    }
  }

  // Store two dimensions of 16 slots, d and d + 8.
  TRIM_INLINE void store_dimensions(__m512i both, float* out) {
    store(out, bf16_to_float16(_mm512_castsi512_si256(both)));
    store(out + 16 * 8, bf16_to_float16(_mm512_extracti64x4_epi64(both, 1)));
  }
  TRIM_INLINE v16f bf16_to_float16(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
  }
  TRIM_INLINE __m512i broadcast(const int8_t* p) { return _mm512_set1_epi32(load_int32(p)); }
  TRIM_INLINE __m512 load_half16(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)p));
  }
};
