// The kernels of each instruction set, chosen when the engine is opened.
#pragma once
#include "native.h"
#include "pool.h"
#include "buffers.h"

namespace trim {

struct Kernels {
  const char* name;
  void (*step)(const TrimModel&, const TrimCache&, const TrimBatch&, Buffers&, Pool&, float*);
  void (*project)(const TrimMatrix&, const float*, int32_t, Buffers&, Pool&, float*);
  void (*best)(const TrimMatrix&, const TrimPreview*, const float*, int32_t, Buffers&, Pool&,
               int32_t*);
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

}  // namespace trim
