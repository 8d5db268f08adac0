// `struct Isa` for NEON without dot products of int8.

#include "arch/arm/tiles-inl.h"

// Products are summed by pairs in int16, then by pairs in int32. No overflow: two products of at
// most 127 * 127 stay below 2^15.
struct PlainDot {
  struct Sum {
    int32x4_t front, back;  // two parts of each of the outputs 0 and 1, and of 2 and 3
  };
  TRIM_INLINE Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  TRIM_INLINE Sum times_four(Sum sum) {
    return {vshlq_n_s32(sum.front, 2), vshlq_n_s32(sum.back, 2)};
  }
  TRIM_INLINE int32x4_t total(Sum sum) { return vpaddq_s32(sum.front, sum.back); }

  // Return sum + the products of codes w0 with lane L0 of x0, and of w1 with lane L1 of x1.
  template <int L0, int L1>
  TRIM_INLINE Sum add(Sum sum, int8x16_t w0, int8x16_t x0, int8x16_t w1, int8x16_t x1) {
    const int8x8_t first = lane<L0>(x0), second = lane<L1>(x1);
    const int16x8_t front = vmlal_s8(vmull_s8(vget_low_s8(w0), first), vget_low_s8(w1), second);
    const int16x8_t back = vmlal_s8(vmull_s8(vget_high_s8(w0), first), vget_high_s8(w1), second);
    return {vpadalq_s16(sum.front, front), vpadalq_s16(sum.back, back)};
  }

 private:
  template <int LANE>
  TRIM_INLINE int8x8_t lane(int8x16_t x) {
    return vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(x), LANE));
  }
};

struct Isa : NeonTiles<PlainDot> {};
