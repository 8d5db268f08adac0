// AVX2: 8 outputs in a register; products of int8 are summed by pairs in int16.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRIM_ISA avx2
#define TRIM_ISA_HEADER "arch/x86/avx2-inl.h"
#define TRIM_TARGET "avx2,fma,f16c"
#include "common/all-inl.h"
#endif
