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

  // out[m][0..16) += product of one output block and `blocks` input blocks with row m. With many
  // rows the accumulators do not fit in registers beside the sums, and are kept in memory.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* b, int64_t, int64_t input_stride, int blocks,
                        const TileRows& in) {
    constexpr bool kInRegisters = M <= 2;
    __m256 acc[M][2];
    for (int m = 0; m < M && kInRegisters; ++m)
      for (int h = 0; h < 2; ++h) acc[m][h] = _mm256_loadu_ps(in.out[m] + 8 * h);
    for (int k = 0; k < blocks; ++k, b += input_stride) {
      __m256i sum[M][2];
      if constexpr (BITS == 4) dot4<M>(b, in, 32 * k, sum);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        if constexpr (BITS == 8) dot8<M>(b, h, in, 32 * k, sum);
        const uint16_t* s = (const uint16_t*)(b + kCodeBytes<BITS>) + 8 * h;
        const __m256 d = (__m256)load_half(s);
        [[maybe_unused]] __m256 low;
        if constexpr (BITS == 4) low = (__m256)load_half(s + 16);
        for (int m = 0; m < M; ++m) {
          if constexpr (!kInRegisters) acc[m][h] = _mm256_loadu_ps(in.out[m] + 8 * h);
          const __m256 step = _mm256_mul_ps(d, _mm256_broadcast_ss(in.scales[m] + k));
          acc[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][h]), step, acc[m][h]);
          if constexpr (BITS == 4)
            acc[m][h] = _mm256_fmadd_ps(low, _mm256_broadcast_ss(in.sums[m] + k), acc[m][h]);
          if constexpr (!kInRegisters) _mm256_storeu_ps(in.out[m] + 8 * h, acc[m][h]);
        }
      }
    }
    for (int m = 0; m < M && kInRegisters; ++m)
      for (int h = 0; h < 2; ++h) _mm256_storeu_ps(in.out[m] + 8 * h, acc[m][h]);
  }

  // out[m][0..16) = the codes of one output block of a head screening times row m of the inputs.
  template <int M>
  TRIM_INLINE void coarse_dot(const uint8_t* b, const int32_t* planes, int blocks,
                              const TileRows& in) {
    __m256 acc[M][2];
    for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    for (int k = 0; k < blocks; ++k) {
      __m256i sum[M][2];
      for (int p = 0; p < planes[k]; ++p, b += 128) {
        __m256i plane[M][2];
        plane_dot<M>(b, in, 32 * k, plane);
        for (int m = 0; m < M; ++m)
          for (int h = 0; h < 2; ++h)
            sum[m][h] = p == 0 ? plane[m][h]
                               : _mm256_add_epi32(_mm256_slli_epi32(sum[m][h], 2), plane[m][h]);
      }
      for (int m = 0; m < M; ++m) {
        const __m256 scale = _mm256_broadcast_ss(in.scales[m] + k);
        for (int h = 0; h < 2; ++h)
          acc[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][h]), scale, acc[m][h]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int h = 0; h < 2; ++h) _mm256_storeu_ps(in.out[m] + 8 * h, acc[m][h]);
  }

 private:
  // sum[m][h] = dot products of one plane of a head screening, 2 bits of each code.
  template <int M>
  TRIM_INLINE void plane_dot(const uint8_t* b, const TileRows& in, int at, __m256i (*sum)[2]) {
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
    const __m256i mask = _mm256_set1_epi8(3);
#pragma GCC unroll 2
    for (int line = 0; line < 2; ++line) {
      const __m256i first = load_codes(b + 64 * line), second = load_codes(b + 64 * line + 32);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t)
        add_line<M>(_mm256_and_si256(_mm256_srli_epi16(first, 2 * t), mask),
                    _mm256_and_si256(_mm256_srli_epi16(second, 2 * t), mask), in,
                    at + 16 * line + 4 * t, sum);
    }
    for (int m = 0; m < M; ++m)
      for (int h = 0; h < 2; ++h) sum[m][h] = to_int32(sum[m][h]);
  }

  template <int BITS>
  static constexpr int kCodeBytes = BITS == 4 ? 256 : 512;

  // Four codes in each lane. Read as a float, since that takes no arithmetic unit.
  TRIM_INLINE __m256i broadcast(const int8_t* p) {
    return (__m256i)_mm256_broadcast_ss((const float*)p);
  }

  // Sums of products of unsigned codes and inputs. Without VNNI they are kept by pairs in int16. No
  // overflow: 8 products of pairs of at most 2 * 15 * 127 stay below 2^15.
  TRIM_INLINE __m256i add_products(__m256i sum, __m256i codes, __m256i inputs) {
#ifdef TRIM_DPBUSD
    return TRIM_DPBUSD(sum, codes, inputs);
#else
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, inputs));
#endif
  }
  // Return the sums of `add_products` in int32.
  TRIM_INLINE __m256i to_int32(__m256i sum) {
#ifdef TRIM_DPBUSD
    return sum;
#else
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
  }
  TRIM_INLINE __m256i load_codes(const uint8_t* p) {
    return _mm256_loadu_si256((const __m256i*)p);
  }
  TRIM_INLINE __m256i lower_half(__m256i raw) {
    return _mm256_and_si256(raw, _mm256_set1_epi8(15));
  }
  TRIM_INLINE __m256i upper_half(__m256i raw) { return lower_half(_mm256_srli_epi16(raw, 4)); }

  // sum[m][h] += products of 8 outputs' codes of four inputs, from input `at` on, with row m.
  template <int M>
  TRIM_INLINE void add_line(__m256i first, __m256i second, const TileRows& in, int at,
                            __m256i (*sum)[2]) {
    for (int m = 0; m < M; ++m) {
      const __m256i inputs = broadcast(in.x[m] + at);
      sum[m][0] = add_products(sum[m][0], first, inputs);
      TRIM_IN_ORDER(sum[m][0]);
      sum[m][1] = add_products(sum[m][1], second, inputs);
      TRIM_IN_ORDER(sum[m][1]);
    }
  }

  // sum[m][h] = dot products of 8 outputs with row m, in int32.
  template <int M>
  TRIM_INLINE void dot4(const uint8_t* b, const TileRows& in, int at, __m256i (*sum)[2]) {
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const uint8_t* line = b + 64 * c;
      add_line<M>(lower_half(load_codes(line)), lower_half(load_codes(line + 32)), in,
                  at + 4 * c, sum);
      add_line<M>(upper_half(load_codes(line)), upper_half(load_codes(line + 32)), in,
                  at + 16 + 4 * c, sum);
    }
    for (int m = 0; m < M; ++m)
      for (int h = 0; h < 2; ++h) sum[m][h] = to_int32(sum[m][h]);
  }

  // The same for one half of the outputs. Weights are made unsigned, and inputs take over the sign.
  template <int M>
  TRIM_INLINE void dot8(const uint8_t* b, int half, const TileRows& in, int at,
                        __m256i (*sum)[2]) {
    for (int m = 0; m < M; ++m) sum[m][half] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) {
      const __m256i w = load_codes(b + 64 * c + 32 * half), size = _mm256_abs_epi8(w);
      for (int m = 0; m < M; ++m) {
        const __m256i inputs = _mm256_sign_epi8(broadcast(in.x[m] + at + 4 * c), w);
#ifdef TRIM_DPBUSD
        sum[m][half] = TRIM_DPBUSD(sum[m][half], size, inputs);
#else
        const __m256i pairs = _mm256_maddubs_epi16(size, inputs);
        sum[m][half] = _mm256_add_epi32(sum[m][half], to_int32(pairs));
#endif
        TRIM_IN_ORDER(sum[m][half]);
      }
    }
  }
};
