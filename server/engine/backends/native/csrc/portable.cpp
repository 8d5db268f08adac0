#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"

#include "vec.h"

#define TRIM_NAME "portable"
namespace trim {
namespace portable {
#include "portable.h"
#include "matmul.h"
#include "attention.h"
#include "rows.h"
#include "attention_block.h"
#include "step.h"
#include "best.h"
#include "entry.h"
}  // namespace portable
}  // namespace trim
