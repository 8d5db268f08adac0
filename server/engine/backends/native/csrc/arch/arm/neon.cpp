// NEON, which every 64-bit ARM processor has.
#if defined(__aarch64__) && defined(__GNUC__)
#define TRIM_ISA neon
#define TRIM_ISA_HEADER "arch/arm/plain-inl.h"
#include "common/all-inl.h"
#endif
