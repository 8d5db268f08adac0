// The list of all code that is compiled once for each instruction set: the files *-inl.h.
//
// A source file in arch/ defines these macros, then includes this file:
//
//   TRIM_ISA               namespace of the code and name of the instruction set, such as avx2
//   TRIM_ISA_HEADER        file with `struct Isa`, the operations that differ
//   TRIM_TARGET            features to compile for, such as "avx2,fma"; undefined: the defaults
//   TRIM_ATTENTION_HEADER  file with the arithmetic of attention; undefined: that in fp32
#if defined(__GNUC__) && !defined(__clang__)
// Reassociation would compute all products of a sum first, and spill them to memory.
#pragma GCC optimize("no-tree-reassoc")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/kernels.h"

#ifndef TRIM_ATTENTION_HEADER
#define TRIM_ATTENTION_HEADER "common/attention_fp32-inl.h"
#endif

#define TRIM_STRING_(x) #x
#define TRIM_STRING(x) TRIM_STRING_(x)
#define TRIM_PRAGMA(x) _Pragma(#x)
#if !defined(TRIM_TARGET)
#define TRIM_PUSH_TARGET(features)
#define TRIM_POP_TARGET
#elif defined(__clang__)
#define TRIM_PUSH_TARGET(features) \
  TRIM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TRIM_POP_TARGET TRIM_PRAGMA(clang attribute pop)
#else
#define TRIM_PUSH_TARGET(features) TRIM_PRAGMA(GCC push_options) TRIM_PRAGMA(GCC target(features))
#define TRIM_POP_TARGET TRIM_PRAGMA(GCC pop_options)
#endif

TRIM_PUSH_TARGET(TRIM_TARGET)
namespace trim {
namespace TRIM_ISA {
#include "common/vector-inl.h"
#include TRIM_ISA_HEADER
#include "common/matmul-inl.h"
#include "common/attention-inl.h"
#include TRIM_ATTENTION_HEADER
#include "common/attend-inl.h"
#include "common/page_selection-inl.h"
#include "common/low_rank-inl.h"
#include "common/norm-inl.h"
#include "common/sub_block-inl.h"
#include "common/write_cache-inl.h"
#include "common/kv_writer-inl.h"
#include "common/kv_maps-inl.h"
#include "common/attention_block-inl.h"
#include "common/step-inl.h"
#include "common/noise-inl.h"
#include "common/coarse_head-inl.h"
#include "common/filtered_draw-inl.h"
#include "common/draw-inl.h"
#include "common/kernels-inl.h"
}  // namespace TRIM_ISA
}  // namespace trim
TRIM_POP_TARGET
