// AVX-VNNI: AVX2 with 256-bit dot products of int8, summed in int32.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRIM_ISA avxvnni
#define TRIM_ISA_HEADER "arch/x86/avx2-inl.h"
#define TRIM_TARGET "avx2,fma,f16c,avxvnni"
#define TRIM_DPBUSD _mm256_dpbusd_avx_epi32
#include "common/all-inl.h"
#endif
