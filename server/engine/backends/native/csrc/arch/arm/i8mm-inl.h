// `struct Isa` for NEON with products of int8 matrices (smmla): 2 rows x 8 inputs x 2 outputs.
//
// A single row, and head screening, take dot products. Integers are exact, so a row is the same
// bit for bit in both ways.

#include "arch/arm/sdot-inl.h"

struct Isa : NeonTiles<Sdot> {
  // out[m][0..16) += product of one output block and `blocks` input blocks with row m.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* block, int64_t output_stride, int64_t input_stride,
                        int blocks, const TileRows& in) {
    if constexpr (M == 1)
      NeonTiles<Sdot>::tile<M, N, BITS>(block, output_stride, input_stride, blocks, in);
    else
      tile_of_pairs<M, BITS>(block, input_stride, blocks, in);
  }

 private:
  // Input block k of pairs of rows: inputs 8 c.. of both rows are in part c. Of an odd number of
  // rows the last one is paired with itself.
  template <int M>
  struct PairedInputs {
    static constexpr int kPairs = (M + 1) / 2;
    int8x16_t part[kPairs][4];
    inline __attribute__((always_inline)) PairedInputs(const TileRows& in, int k) {
      for (int p = 0; p < kPairs; ++p) {
        const int8_t* first = in.x[2 * p] + 32 * k;
        const int8_t* second = in.x[2 * p + 1 < M ? 2 * p + 1 : 2 * p] + 32 * k;
        for (int c = 0; c < 4; ++c)
          part[p][c] = vcombine_s8(vld1_s8(first + 8 * c), vld1_s8(second + 8 * c));
      }
    }
  };

  template <int M, int BITS>
  TRIM_INLINE void tile_of_pairs(const uint8_t* block, int64_t input_stride, int blocks,
                                 const TileRows& in) {
    constexpr int Q = kQuads<M>, P = PairedInputs<M>::kPairs;
    for (int first = 0; first < 4; first += Q) {
      float32x4_t acc[M][Q];
      load_outputs<M, Q>(in, first, acc);
      const uint8_t* b = block;
      for (int k = 0; k < blocks; ++k, b += input_stride) {
        const PairedInputs<M> x(in, k);
        int32x4_t sum[P][2 * Q];  // of 2 rows x 2 outputs
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < 2 * Q; ++i) sum[p][i] = vdupq_n_s32(0);
        for (int c = 0; c < (BITS == 4 ? 2 : 4); ++c)
          add_lines<BITS, M, Q>(b + 128 * c + 16 * first, x, c, sum);
        for (int q = 0; q < Q; ++q) {
          const Scales<BITS> scales(b, first + q);
          for (int m = 0; m < M; ++m) {
            const int64x2_t front = vreinterpretq_s64_s32(sum[m / 2][2 * q]);
            const int64x2_t back = vreinterpretq_s64_s32(sum[m / 2][2 * q + 1]);
            const int64x2_t row = m % 2 ? vzip2q_s64(front, back) : vzip1q_s64(front, back);
            acc[m][q] = scales.add(acc[m][q], vreinterpretq_s32_s64(row), in, m, k);
          }
        }
      }
      store_outputs<M, Q>(in, first, acc);
    }
  }

  // Add the products of two lines of codes, which hold 8 inputs, or 2 x 8 in 4 bits.
  template <int BITS, int M, int Q, int P = PairedInputs<M>::kPairs>
  TRIM_INLINE void add_lines(const uint8_t* b, const PairedInputs<M>& x, int c,
                             int32x4_t (&sum)[P][2 * Q]) {
    for (int q = 0; q < Q; ++q) {
      const uint32x4_t even = vreinterpretq_u32_u8(vld1q_u8(b + 16 * q));
      const uint32x4_t odd = vreinterpretq_u32_u8(vld1q_u8(b + 64 + 16 * q));
      const uint8x16_t outputs[2] = {vreinterpretq_u8_u32(vzip1q_u32(even, odd)),
                                     vreinterpretq_u8_u32(vzip2q_u32(even, odd))};
      for (int i = 0; i < 2; ++i)
        for (int p = 0; p < P; ++p) {
          int32x4_t& one = sum[p][2 * q + i];
          if constexpr (BITS == 4) {
            const uint8x16_t low = vandq_u8(outputs[i], vdupq_n_u8(15));
            const uint8x16_t high = vshrq_n_u8(outputs[i], 4);
            one = vmmlaq_s32(one, x.part[p][c], vreinterpretq_s8_u8(low));
            one = vmmlaq_s32(one, x.part[p][2 + c], vreinterpretq_s8_u8(high));
          } else {
            one = vmmlaq_s32(one, x.part[p][c], vreinterpretq_s8_u8(outputs[i]));
          }
        }
    }
  }
};
