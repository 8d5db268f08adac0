// NEON with dot products of int8, and products of int8 matrices.
#if defined(__aarch64__) && defined(__GNUC__)
#define TRIM_ISA neoni8mm
#define TRIM_ISA_HEADER "arch/arm/i8mm-inl.h"
#define TRIM_TARGET "arch=armv8.2-a+dotprod+i8mm"
#include "common/all-inl.h"
#endif
