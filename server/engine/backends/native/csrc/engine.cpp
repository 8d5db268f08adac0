// The C interface: picks the instruction set, owns the threads and the memory of steps.
#include "native.h"

#include <cstring>
#include <memory>

#include "kernels.h"

struct TrimEngine {
  const trim::Kernels* kernels;
  trim::Pool pool;
  trim::Buffers buffers;

  TrimEngine(const trim::Kernels* chosen, int threads) : kernels(chosen), pool(threads) {
    buffers.local.resize(pool.size());
  }
};

namespace {

// The best first.
const trim::Kernels* const* available() {
  static const trim::Kernels* found[6] = {};
  if (found[0]) return found;
  int n = 0;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found[n++] = &trim::avx512bf16::kernels;
  if (avx512) found[n++] = &trim::avx512::kernels;
  if (avx2 && __builtin_cpu_supports("avxvnni")) found[n++] = &trim::avxvnni::kernels;
  if (avx2) found[n++] = &trim::avx2::kernels;
#endif
  found[n] = &trim::portable::kernels;
  return found;
}

}  // namespace

TrimEngine* trim_open(const char* isa, int32_t threads) {
  for (const trim::Kernels* const* k = available(); *k; ++k)
    if (!isa || !*isa || !strcmp(isa, (*k)->name)) return new TrimEngine(*k, threads);
  return nullptr;
}

void trim_close(TrimEngine* engine) { delete engine; }

const char* trim_isa(const TrimEngine* engine) { return engine->kernels->name; }

void trim_step(TrimEngine* engine, const TrimModel* model, const TrimCache* cache,
               const TrimBatch* batch, float* hidden) {
  if (batch->rows)
    engine->kernels->step(*model, *cache, *batch, engine->buffers, engine->pool, hidden);
}

void trim_project(TrimEngine* engine, const TrimMatrix* matrix, const float* x, int32_t rows,
                  float* y) {
  if (rows) engine->kernels->project(*matrix, x, rows, engine->buffers, engine->pool, y);
}

void trim_best(TrimEngine* engine, const TrimMatrix* matrix, const TrimPreview* preview,
               const float* x, int32_t rows, int32_t* best) {
  if (rows)
    engine->kernels->best(*matrix, preview, x, rows, engine->buffers, engine->pool, best);
}
