// `struct Isa` in plain C++: conversions and dot products of packed blocks.

struct Isa : PairOfVectors<Isa> {
  TRIM_INLINE v8f load_half(const uint16_t* p) {
    v8f v;
    for (int i = 0; i < 8; ++i) v[i] = half_to_float(p[i]);
    return v;
  }
  TRIM_INLINE v8f load_int8(const int8_t* p) {
    v8f v;
    for (int i = 0; i < 8; ++i) v[i] = p[i];
    return v;
  }
  TRIM_INLINE v8f fma(v8f a, v8f b, v8f c) { return a * b + c; }
  TRIM_INLINE v8f exp(v8f x) { return exp8(x); }
  TRIM_INLINE int32_t store_int8(int8_t* p, const v8f* v) {
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += p[i] = (int8_t)lrintf(v[i / 8][i % 8]);
    return sum;
  }

  static constexpr int kTileBlocks = 1, kValueRows = 1, kScoreTiles = 1;

  // out[m][0..16) += product of one output block and `blocks` input blocks with row m.
  template <int M, int N, int BITS>
  TRIM_INLINE void tile(const uint8_t* block, int64_t, int64_t input_stride, int blocks,
                        const TileRows& in) {
    for (int k = 0; k < blocks; ++k, block += input_stride) {
      for (int m = 0; m < M; ++m) {
        int32_t sum[TRIM_OUTPUTS] = {};
        const int8_t* row = in.x[m] + 32 * k;
        for (int c = 0; c < 32 / (BITS == 4 ? 8 : 4); ++c) {
          for (int r = 0; r < TRIM_OUTPUTS; ++r) {
            for (int i = 0; i < 4; ++i) {
              const uint8_t code = block[64 * c + 4 * r + i];
              if constexpr (BITS == 4)
                sum[r] += (code & 15) * row[4 * c + i] + (code >> 4) * row[16 + 4 * c + i];
              else
                sum[r] += (int8_t)code * row[4 * c + i];
            }
          }
        }
        for (int r = 0; r < TRIM_OUTPUTS; ++r) {
          if constexpr (BITS == 4) {
            const uint16_t* s = (const uint16_t*)(block + 256);
            in.out[m][r] += sum[r] * (half_to_float(s[r]) * in.scales[m][k]);
            in.out[m][r] += half_to_float(s[16 + r]) * in.sums[m][k];
          } else {
            const uint16_t* s = (const uint16_t*)(block + 512);
            in.out[m][r] += sum[r] * (half_to_float(s[r]) * in.scales[m][k]);
          }
        }
      }
    }
  }

  // out[m][0..16) = the codes of one output block of a head screening times row m of the inputs.
  template <int M>
  TRIM_INLINE void coarse_dot(const uint8_t* b, const int32_t* planes, int blocks,
                              const TileRows& in) {
    for (int m = 0; m < M; ++m) memset(in.out[m], 0, TRIM_OUTPUTS * sizeof(float));
    for (int k = 0; k < blocks; b += 128 * planes[k++])
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < TRIM_OUTPUTS; ++r) {
          int32_t sum = 0;
          for (int p = 0; p < planes[k]; ++p) {
            sum *= 4;
            for (int i = 0; i < TRIM_INPUTS; ++i) {
              const uint8_t byte = b[128 * p + 64 * (i / 16) + 4 * r + i % 4];
              sum += (byte >> 2 * (i % 16 / 4) & 3) * in.x[m][32 * k + i];
            }
          }
          in.out[m][r] += sum * in.scales[m][k];
        }
  }
};
