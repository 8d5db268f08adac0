// Dot products of int8 by the instruction sdot.

#include "arch/arm/tiles-inl.h"

struct Sdot {
  using Sum = int32x4_t;
  TRIM_INLINE Sum zero() { return vdupq_n_s32(0); }
  TRIM_INLINE Sum times_four(Sum sum) { return vshlq_n_s32(sum, 2); }
  TRIM_INLINE int32x4_t total(Sum sum) { return sum; }

  // Return sum + the products of codes w0 with lane L0 of x0, and of w1 with lane L1 of x1.
  template <int L0, int L1>
  TRIM_INLINE Sum add(Sum sum, int8x16_t w0, int8x16_t x0, int8x16_t w1, int8x16_t x1) {
    return vdotq_laneq_s32(vdotq_laneq_s32(sum, w0, x0, L0), w1, x1, L1);
  }
};
