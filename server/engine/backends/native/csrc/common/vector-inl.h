// Vectors of eight numbers by the compilers' vector extensions, for every instruction set.
//
//   v8f  8 x float     v8i, v8u  8 x 32-bit integer     v8h  8 x 16 bits
//
// Also: bf16 and fp16 conversions, e^x, and transposition of 8 x 8 floats.

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

#define TRIM_INLINE static inline __attribute__((always_inline))

#ifdef __clang__
#define TRIM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TRIM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, v8i{__VA_ARGS__})
#endif

TRIM_INLINE v8f load8(const float* p) {
  v8f v;
  memcpy(&v, p, sizeof v);
  return v;
}
TRIM_INLINE void store8(float* p, v8f v) { memcpy(p, &v, sizeof v); }
TRIM_INLINE v8f splat(float x) { return v8f{x, x, x, x, x, x, x, x}; }
TRIM_INLINE v8f max8(v8f a, v8f b) { return a > b ? a : b; }
TRIM_INLINE v8f min8(v8f a, v8f b) { return a < b ? a : b; }
TRIM_INLINE v8i max8(v8i a, v8i b) { return a > b ? a : b; }
TRIM_INLINE v8i bits8(v8f v) {
  v8i bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
TRIM_INLINE float sum8(v8f v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}
TRIM_INLINE float max_element8(v8f v) {
  v = max8(v, TRIM_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = max8(v, TRIM_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  return v[0] > v[1] ? v[0] : v[1];
}

// Return the maximum of non-negative floats, compared by their bits; NaN is the highest.
TRIM_INLINE float max_float_of_bits8(v8i v) {
  v = max8(v, TRIM_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = max8(v, TRIM_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  const int32_t bits = v[0] > v[1] ? v[0] : v[1];
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// bf16: the upper half of a float, rounded to nearest, ties to even.
typedef uint16_t v8h __attribute__((vector_size(16)));
typedef uint32_t v8u __attribute__((vector_size(32)));

TRIM_INLINE float bf16_to_float(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
TRIM_INLINE uint16_t float_to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
TRIM_INLINE v8f bf16_to_float8(const uint16_t* p) {
  v8h half;
  memcpy(&half, p, sizeof half);
  const v8u bits = __builtin_convertvector(half, v8u) << 16;
  v8f v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
TRIM_INLINE void float8_to_bf16(uint16_t* p, v8f v) {
  v8u bits;
  memcpy(&bits, &v, sizeof bits);
  const v8h half = __builtin_convertvector((bits + 0x7fffu + (bits >> 16 & 1)) >> 16, v8h);
  memcpy(p, &half, sizeof half);
}

// Sixteen floats as two vectors of eight, for instruction sets without wider registers.
template <class Isa>
struct PairOfVectors {
  struct v16f {
    v8f low, high;
  };
  static constexpr bool kTransposesBf16 = false;
  TRIM_INLINE void transpose_bf16(const uint16_t*, int, float*) {}
  TRIM_INLINE v16f zeros() { return {splat(0), splat(0)}; }
  TRIM_INLINE v16f load(const float* p) { return {load8(p), load8(p + 8)}; }
  TRIM_INLINE v16f load(const uint16_t* p) { return {bf16_to_float8(p), bf16_to_float8(p + 8)}; }
  TRIM_INLINE void store(float* p, v16f x) {
    store8(p, x.low);
    store8(p + 8, x.high);
  }
  TRIM_INLINE v16f multiply(v16f x, float factor) { return {x.low * factor, x.high * factor}; }
  TRIM_INLINE v16f multiply_add(v16f sum, float factor, v16f x) {  // sum + factor * x, rounded once
    return {Isa::fma(splat(factor), x.low, sum.low), Isa::fma(splat(factor), x.high, sum.high)};
  }
};

// Compute e^x to about one unit in the last place, by the polynomial of Cephes' expf. x is clamped
// to -87.3..88.
TRIM_INLINE v8f exp8(v8f x) {
  x = min8(max8(x, splat(-87.3f)), splat(88.0f));
  const v8f shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const v8f n = (x * 1.44269504f + shift) - shift;
  v8f r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  v8f p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const v8i power = (__builtin_convertvector(n, v8i) + 127) << 23;
  v8f scale;
  memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

// Transpose 8 x 8 floats in place.
TRIM_INLINE void transpose8(v8f* r) {
  v8f t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = TRIM_SHUFFLE(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[2 * i + 1] = TRIM_SHUFFLE(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int h = 0; h < 2; ++h) {
    const v8f* a = t + 4 * h;
    u[4 * h] = TRIM_SHUFFLE(a[0], a[2], 0, 1, 8, 9, 4, 5, 12, 13);
    u[4 * h + 1] = TRIM_SHUFFLE(a[0], a[2], 2, 3, 10, 11, 6, 7, 14, 15);
    u[4 * h + 2] = TRIM_SHUFFLE(a[1], a[3], 0, 1, 8, 9, 4, 5, 12, 13);
    u[4 * h + 3] = TRIM_SHUFFLE(a[1], a[3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = TRIM_SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = TRIM_SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Convert fp16 in software, for instruction sets without a conversion.
TRIM_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
  uint32_t exponent = (h >> 10) & 31, fraction = h & 1023, bits;
  if (exponent == 0) {
    const float small = fraction * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &small, 4);
    bits |= sign;
  } else if (exponent == 31) {
    bits = sign | 0x7f800000u | fraction << 13;
  } else {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
