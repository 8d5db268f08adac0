// The table of kernels that each instruction set provides.
#pragma once
#if !defined(__GNUC__)
#error "the native kernels need g++ or clang++: they use vectors of eight numbers"
#endif

#include "common/buffers.h"
#include "common/thread_pool.h"
#include "include/native.h"

namespace trim {

struct Kernels {
  const char* name;  // of the instruction set
  void (*step)(const TrimModel&, const TrimCache&, const TrimBatch&, Buffers&, ThreadPool&,
               float* hidden);
  void (*project)(const TrimMatrix&, const float* x, int32_t rows, Buffers&, ThreadPool&, float* y);
  void (*draw)(const TrimMatrix&, const TrimHeadScreen*, const float* x, const TrimDraw*,
               int32_t rows, Buffers&, ThreadPool&, int32_t* outputs);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avxvnni {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}
namespace neondot {
extern const Kernels kernels;
}
namespace neoni8mm {
extern const Kernels kernels;
}

}  // namespace trim
