#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")

#include "vec.h"

#define TRIM_NAME "avx512"
namespace trim {
namespace avx512 {
#include "avx512.h"
#include "matmul.h"
#include "attention.h"
#include "rows.h"
#include "attention_block.h"
#include "step.h"
#include "best.h"
#include "entry.h"
}  // namespace avx512
}  // namespace trim
#endif
