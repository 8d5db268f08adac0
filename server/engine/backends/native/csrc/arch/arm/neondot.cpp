// NEON with dot products of int8.
#if defined(__aarch64__) && defined(__GNUC__)
#define TRIM_ISA neondot
#define TRIM_ISA_HEADER "arch/arm/dot-inl.h"
#define TRIM_TARGET "arch=armv8.2-a+dotprod"
#include "common/all-inl.h"
#endif
