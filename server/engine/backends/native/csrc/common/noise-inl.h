// Noise of draws: standard Gumbel noise as a function of a key and an output's number alone.
//
//   noise = -log(-log(1 - share)), where share = hash(key, output) / 2^32 in (0, 1)
//
// `server/engine/draw.py` computes the same.

// Mix the bits of eight numbers (`lowbias32`: Wellons, 2018, "Prospecting for Hash Functions").
TRIM_INLINE v8u mixed8(v8u x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Compute log(x) of positive normal numbers to about one unit in the last place, by the polynomial
// of Cephes' logf.
TRIM_INLINE v8f log8(v8f x) {
  const v8i bits = bits8(x);
  const v8i half = (bits & 0x7fffff) | 0x3f000000;  // the fraction, as 0.5..1
  v8f m;
  memcpy(&m, &half, sizeof m);
  const v8i is_small = m < splat(0.707106781f);  // -1 where true
  const v8f exponent = __builtin_convertvector((bits >> 23) - 126 + is_small, v8f);
  m = (is_small ? m + m : m) - 1.0f;
  const v8f z = m * m;
  v8f p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const v8f rest = p * m * z + exponent * -2.12194440e-4f - 0.5f * z;
  return m + rest + exponent * 0.693359375f;
}

// Return the noise of the outputs `first..first + 8`.
TRIM_INLINE v8f noise8(const uint32_t* key, uint32_t first) {
  v8u x = first + v8u{0, 1, 2, 3, 4, 5, 6, 7};
  x = mixed8(mixed8(x ^ key[0]) ^ key[1]);
  const v8f upper = __builtin_convertvector((v8i)(x >> 16), v8f);
  const v8f lower = __builtin_convertvector((v8i)(x & 0xffff), v8f);
  const v8f number = upper * 65536.0f + lower;
  const v8f share = min8((number + 0.5f) * 2.3283064365386963e-10f, splat(0.99999994f));
  const v8f left = 1.0f - share;
  // -log(1 - share), exact where the subtraction is not (Kahan).
  const v8f time = left == 1.0f ? share : log8(left) * share / (left - 1.0f);
  return -log8(time);
}
