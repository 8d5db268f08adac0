// The parts of an RMS norm: out = x * factor * weight, with factor = 1 / sqrt(mean(x^2) + eps).

// Return sum(x^2) for x[0..width).
TRIM_INLINE float sum_squares(const float* x, int64_t width) {
  v8f squares = splat(0);
  float rest = 0;
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) squares = Isa::fma(load8(x + i), load8(x + i), squares);
  for (; i < width; ++i) rest += x[i] * x[i];
  return sum8(squares) + rest;
}

// Return 1 / sqrt(mean(x^2) + eps) for x[0..width).
TRIM_INLINE float inverse_rms(const float* x, int64_t width, float eps) {
  return 1.0f / sqrtf(sum_squares(x, width) / width + eps);
}

// out[0..width) = x * factor * weight. It may be computed in place.
TRIM_INLINE void apply_weight(const float* x, float factor, const float* weight, int64_t width,
                              float* out) {
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) store8(out + i, load8(x + i) * factor * load8(weight + i));
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}
