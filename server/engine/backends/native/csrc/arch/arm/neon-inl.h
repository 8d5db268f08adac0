// Operations that all ARM instruction sets here have: fp32 arithmetic by NEON, and conversions.

struct Neon {
  TRIM_INLINE v8f load_int8(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    const float32x4_t halves[2] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                                   vcvtq_f32_s32(vmovl_high_s16(wide))};
    v8f v;
    memcpy(&v, halves, sizeof v);
    return v;
  }
  TRIM_INLINE v8f fma(v8f a, v8f b, v8f c) { return a * b + c; }  // compilers make fmla of it
  TRIM_INLINE v8f exp(v8f x) { return exp8(x); }

  // Round 32 numbers of -127..127 to int8, to nearest, and return the sum of the codes.
  TRIM_INLINE int32_t store_int8(int8_t* p, const v8f* v) {
    int16x8_t sum = vdupq_n_s16(0);
    for (int i = 0; i < 4; ++i) {
      float32x4_t halves[2];
      memcpy(halves, v + i, sizeof halves);
      const int16x8_t codes = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(halves[0])),
                                           vmovn_s32(vcvtnq_s32_f32(halves[1])));
      vst1_s8(p + 8 * i, vmovn_s16(codes));
      sum = vaddq_s16(sum, codes);
    }
    return vaddlvq_s16(sum);
  }

  // Sixteen floats.
  struct v16f {
    float32x4_t part[4];
  };
  TRIM_INLINE v16f zeros() {
    const float32x4_t zero = vdupq_n_f32(0);
    return {zero, zero, zero, zero};
  }
  TRIM_INLINE v16f load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  TRIM_INLINE v16f load(const uint16_t* p) {
    return {bf16(vld1_u16(p)), bf16(vld1_u16(p + 4)), bf16(vld1_u16(p + 8)),
            bf16(vld1_u16(p + 12))};
  }
  TRIM_INLINE void store(float* p, v16f x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.part[i]);
  }
  TRIM_INLINE v16f multiply(v16f x, float factor) {
    for (int i = 0; i < 4; ++i) x.part[i] = vmulq_n_f32(x.part[i], factor);
    return x;
  }
  TRIM_INLINE v16f multiply_add(v16f sum, float factor, v16f x) {
    for (int i = 0; i < 4; ++i) sum.part[i] = vfmaq_n_f32(sum.part[i], x.part[i], factor);
    return sum;
  }

  static constexpr bool kTransposesBf16 = true;

  // transposed[d][0..16) = dimension d of 16 slots [16][dim] of bf16. `dim` is a multiple of 8.
  TRIM_INLINE void transpose_bf16(const uint16_t* slots, int dim, float* transposed) {
    for (int d = 0; d < dim; d += 8, transposed += 8 * 16)
      for (int first = 0; first < 16; first += 8) {
        uint16x8_t a[8], b[8];
        for (int i = 0; i < 8; ++i) a[i] = vld1q_u16(slots + (first + i) * dim + d);
        for (int i = 0; i < 8; i += 2) {
          b[i] = vtrn1q_u16(a[i], a[i + 1]);
          b[i + 1] = vtrn2q_u16(a[i], a[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
          for (int j = 0; j < 2; ++j) {
            const uint32x4_t front = vreinterpretq_u32_u16(b[i + j]);
            const uint32x4_t back = vreinterpretq_u32_u16(b[i + 2 + j]);
            a[i + j] = vreinterpretq_u16_u32(vtrn1q_u32(front, back));
            a[i + 2 + j] = vreinterpretq_u16_u32(vtrn2q_u32(front, back));
          }
        // a[j] holds dimensions j and j + 4 of slots 0 to 3, a[4 + j] those of slots 4 to 7.
        for (int j = 0; j < 4; ++j) {
          const uint64x2_t front = vreinterpretq_u64_u16(a[j]);
          const uint64x2_t back = vreinterpretq_u64_u16(a[4 + j]);
          store_bf16(vtrn1q_u64(front, back), transposed + 16 * j + first);
          store_bf16(vtrn2q_u64(front, back), transposed + 16 * (j + 4) + first);
        }
      }
  }

 private:
  TRIM_INLINE float32x4_t bf16(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
  TRIM_INLINE void store_bf16(uint64x2_t eight, float* out) {
    const uint16x8_t x = vreinterpretq_u16_u64(eight);
    vst1q_f32(out, bf16(vget_low_u16(x)));
    vst1q_f32(out + 4, bf16(vget_high_u16(x)));
  }
};
