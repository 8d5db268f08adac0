// AVX-512 with VNNI: 16 outputs in a register.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRIM_ISA avx512
#define TRIM_ISA_HEADER "arch/x86/avx512-inl.h"
#define TRIM_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
#include "common/all-inl.h"
#endif
