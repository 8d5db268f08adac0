// Packed blocks times quantised rows, for any dot product `Dot` of NEON.
//
// Registers in dot products: 4 outputs x 4 inputs of int8, a quad of a line of codes. A line is four
// quads. The 32 inputs of a block are two registers; a dot product takes 4 of them by their lane.
// The registers do not hold all 16 outputs of more than two rows, which are cut in two passes.

#include "arch/arm/neon-inl.h"

template <class Dot>
struct NeonTiles : Neon {
  static constexpr int kTileBlocks = 1;  // output blocks of a tile
  static constexpr int kValueRows = 1;   // rows of attention whose values are summed at a time
  static constexpr int kScoreTiles = 1;  // tiles of 16 keys that are scored at a time

  // out[m][0..16) += product of one output block and `blocks` input blocks with row m.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* block, int64_t, int64_t input_stride, int blocks,
                        const TileRows& in) {
    constexpr int Q = kQuads<M>;
    for (int first = 0; first < 4; first += Q) {
      float32x4_t acc[M][Q];
      load_outputs<M, Q>(in, first, acc);
      const uint8_t* b = block;
      for (int k = 0; k < blocks; ++k, b += input_stride) {
        Inputs<M> x(in, k);
        Sum sum[M][Q];
        set_to_zero<M, Q>(sum);
        add_lines<BITS, 0, M, Q>(b + 16 * first, x, sum);
        add_lines<BITS, 1, M, Q>(b + 16 * first, x, sum);
        add_lines<BITS, 2, M, Q>(b + 16 * first, x, sum);
        add_lines<BITS, 3, M, Q>(b + 16 * first, x, sum);
        for (int q = 0; q < Q; ++q) {
          const Scales<BITS> scales(b, first + q);
          for (int m = 0; m < M; ++m)
            acc[m][q] = scales.add(acc[m][q], Dot::total(sum[m][q]), in, m, k);
        }
      }
      store_outputs<M, Q>(in, first, acc);
    }
  }

  // out[m][0..16) = the codes of one output block of a head screening times row m of the inputs.
  template <int M>
  TRIM_INLINE void coarse_dot(const uint8_t* block, const int32_t* planes, int blocks,
                              const TileRows& in) {
    constexpr int Q = kQuads<M>;
    for (int first = 0; first < 4; first += Q) {
      float32x4_t acc[M][Q];
      for (int m = 0; m < M; ++m)
        for (int q = 0; q < Q; ++q) acc[m][q] = vdupq_n_f32(0);
      const uint8_t* b = block + 16 * first;
      for (int k = 0; k < blocks; ++k) {
        const Inputs<M> x(in, k);
        Sum sum[M][Q];
        set_to_zero<M, Q>(sum);
        for (int p = 0; p < planes[k]; ++p, b += 128) {
          for (int m = 0; m < M; ++m)
            for (int q = 0; q < Q; ++q) sum[m][q] = Dot::times_four(sum[m][q]);
          add_plane_line<M, Q, 0>(b, x, sum);
          add_plane_line<M, Q, 1>(b + 64, x, sum);
        }
        for (int m = 0; m < M; ++m)
          for (int q = 0; q < Q; ++q)
            acc[m][q] = vfmaq_n_f32(acc[m][q], vcvtq_f32_s32(Dot::total(sum[m][q])),
                                    in.scales[m][k]);
      }
      store_outputs<M, Q>(in, first, acc);
    }
  }

 protected:
  using Sum = typename Dot::Sum;

  template <int M>
  static constexpr int kQuads = M <= 2 ? 4 : 2;  // quads of a pass

  // The scales and minima of a quad of outputs.
  template <int BITS>
  struct Scales {
    float32x4_t step, minimum;
    TRIM_INLINE float32x4_t load_half(const uint8_t* p) {
      return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
    }
    inline __attribute__((always_inline)) Scales(const uint8_t* block, int quad) {
      const uint8_t* p = block + (BITS == 4 ? 256 : 512) + 8 * quad;
      step = load_half(p);
      minimum = BITS == 4 ? load_half(p + 32) : vdupq_n_f32(0);
    }
    // Return acc + the terms of input block k of row m, given its dot products.
    inline __attribute__((always_inline)) float32x4_t add(float32x4_t acc, int32x4_t dots,
                                                          const TileRows& in, int m,
                                                          int k) const {
      acc = vfmaq_f32(acc, vcvtq_f32_s32(dots), vmulq_n_f32(step, in.scales[m][k]));
      return BITS == 4 ? vfmaq_n_f32(acc, minimum, in.sums[m][k]) : acc;
    }
  };

  template <int M, int Q>
  TRIM_INLINE void load_outputs(const TileRows& in, int first, float32x4_t (&acc)[M][Q]) {
    for (int m = 0; m < M; ++m)
      for (int q = 0; q < Q; ++q) acc[m][q] = vld1q_f32(in.out[m] + 4 * (first + q));
  }
  template <int M, int Q>
  TRIM_INLINE void store_outputs(const TileRows& in, int first, const float32x4_t (&acc)[M][Q]) {
    for (int m = 0; m < M; ++m)
      for (int q = 0; q < Q; ++q) vst1q_f32(in.out[m] + 4 * (first + q), acc[m][q]);
  }

 private:
  // Input block k of each row.
  template <int M>
  struct Inputs {
    int8x16_t half[M][2];
    inline __attribute__((always_inline)) Inputs(const TileRows& in, int k) {
      for (int m = 0; m < M; ++m)
        for (int h = 0; h < 2; ++h) half[m][h] = vld1q_s8(in.x[m] + 32 * k + 16 * h);
    }
  };

  template <int M, int Q>
  TRIM_INLINE void set_to_zero(Sum (&sum)[M][Q]) {
    for (int m = 0; m < M; ++m)
      for (int q = 0; q < Q; ++q) sum[m][q] = Dot::zero();
  }

  // Add the products of line C of a block in 4 bits, or of lines 2 C and 2 C + 1 in 8 bits.
  template <int BITS, int C, int M, int Q>
  TRIM_INLINE void add_lines(const uint8_t* b, const Inputs<M>& x, Sum (&sum)[M][Q]) {
    for (int q = 0; q < Q; ++q) {
      if constexpr (BITS == 4) {
        const uint8x16_t raw = vld1q_u8(b + 64 * C + 16 * q);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(raw, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(raw, 4));
        for (int m = 0; m < M; ++m)
          sum[m][q] =
              Dot::template add<C, C>(sum[m][q], low, x.half[m][0], high, x.half[m][1]);
      } else {
        constexpr int kLane = 2 * C % 4;
        const int8x16_t even = vld1q_s8((const int8_t*)b + 128 * C + 16 * q);
        const int8x16_t odd = vld1q_s8((const int8_t*)b + 128 * C + 64 + 16 * q);
        for (int m = 0; m < M; ++m) {
          const int8x16_t inputs = x.half[m][C / 2];
          sum[m][q] = Dot::template add<kLane, kLane + 1>(sum[m][q], even, inputs, odd, inputs);
        }
      }
    }
  }

  // Add the products of line `LINE` of a plane of a head screening, 2 bits of each code.
  template <int M, int Q, int LINE>
  TRIM_INLINE void add_plane_line(const uint8_t* b, const Inputs<M>& x, Sum (&sum)[M][Q]) {
    const uint8x16_t mask = vdupq_n_u8(3);
    for (int q = 0; q < Q; ++q) {
      const uint8x16_t raw = vld1q_u8(b + 16 * q);
      const int8x16_t code[4] = {vreinterpretq_s8_u8(vandq_u8(raw, mask)),
                                 vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(raw, 2), mask)),
                                 vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(raw, 4), mask)),
                                 vreinterpretq_s8_u8(vshrq_n_u8(raw, 6))};
      for (int m = 0; m < M; ++m) {
        const int8x16_t inputs = x.half[m][LINE];
        sum[m][q] = Dot::template add<0, 1>(sum[m][q], code[0], inputs, code[1], inputs);
        sum[m][q] = Dot::template add<2, 3>(sum[m][q], code[2], inputs, code[3], inputs);
      }
    }
  }
};
