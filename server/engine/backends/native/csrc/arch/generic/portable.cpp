// Plain C++, for processors without kernels of their own, and to check the other kernels.
#define TRIM_ISA portable
#define TRIM_ISA_HEADER "arch/generic/portable-inl.h"
#include "common/all-inl.h"
