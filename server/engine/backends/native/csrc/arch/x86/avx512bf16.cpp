// AVX-512 with VNNI and BF16: as avx512, but attention multiplies bf16.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRIM_ISA avx512bf16
#define TRIM_ISA_HEADER "arch/x86/avx512-inl.h"
#define TRIM_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16"
#define TRIM_ATTENTION_HEADER "arch/x86/attention_bf16-inl.h"
#include "common/all-inl.h"
#endif
