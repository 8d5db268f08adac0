#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,fma,f16c,avxvnni")

#include "vec.h"

#define TRIM_VNNI _mm256_dpbusd_avx_epi32
#define TRIM_NAME "avxvnni"
namespace trim {
namespace avxvnni {
#include "avx2.h"
#include "matmul.h"
#include "attention.h"
#include "rows.h"
#include "attention_block.h"
#include "step.h"
#include "best.h"
#include "entry.h"
}  // namespace avxvnni
}  // namespace trim
#endif
