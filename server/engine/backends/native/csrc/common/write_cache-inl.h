// How a key or value vector is stored in the cache: int8 vectors have a scale, max |x| / 127.

// Write vector `at` of a cache, `x` [dim], as bf16, or as int8 where there are `scales`.
static void write_cache(void* store, float* scales, int64_t at, const float* x, int dim) {
  if (scales) {
    float highest = 0;
    for (int d = 0; d < dim; ++d) highest = fabsf(x[d]) > highest ? fabsf(x[d]) : highest;
    scales[at] = highest / 127.0f;
    const float inverse = highest > 0 ? 127.0f / highest : 0.0f;
    int8_t* out = (int8_t*)store + at * dim;
    for (int d = 0; d < dim; ++d) out[d] = (int8_t)lrintf(x[d] * inverse);
  } else {
    uint16_t* out = (uint16_t*)store + at * dim;
    int d = 0;
    for (; d + 8 <= dim; d += 8) float8_to_bf16(out + d, load8(x + d));
    for (; d < dim; ++d) out[d] = float_to_bf16(x[d]);
  }
}
