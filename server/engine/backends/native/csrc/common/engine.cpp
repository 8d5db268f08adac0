// The C interface: chooses the kernels, and owns the threads and the memory of steps.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/kernels.h"
#include "include/native.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include "arch/x86/cpu_features.h"
#elif defined(__aarch64__) && defined(__GNUC__)
#include "arch/arm/cpu_features.h"
#endif

struct TrimEngine {
  const trim::Kernels* kernels;
  trim::ThreadPool pool;
  trim::Buffers buffers;

  TrimEngine(const trim::Kernels* chosen, int threads) : kernels(chosen), pool(threads) {
    buffers.threads.resize(pool.size());
  }
};

namespace {

constexpr int32_t kStructSizes[] = {
    sizeof(TrimMatrix),    sizeof(TrimHeadScreen),      sizeof(TrimDraw),
    sizeof(TrimInputCorrection), sizeof(TrimCorrection), sizeof(TrimLayer),
    sizeof(TrimModel),     sizeof(TrimVariant),         sizeof(TrimKVMaps),
    sizeof(TrimCache),     sizeof(TrimBatch)};
constexpr int32_t kStructs = sizeof(kStructSizes) / sizeof(kStructSizes[0]);

// Return the kernels that run on this processor, the fastest first.
std::vector<const trim::Kernels*> available_kernels() {
  std::vector<const trim::Kernels*> found;
#if defined(__x86_64__) && defined(__GNUC__)
  const trim::CpuFeatures cpu = trim::cpu_features();
  if (cpu.avx512bf16) found.push_back(&trim::avx512bf16::kernels);
  if (cpu.avx512) found.push_back(&trim::avx512::kernels);
  if (cpu.avxvnni) found.push_back(&trim::avxvnni::kernels);
  if (cpu.avx2) found.push_back(&trim::avx2::kernels);
#elif defined(__aarch64__) && defined(__GNUC__)
  const trim::CpuFeatures cpu = trim::cpu_features();
  if (cpu.i8mm) found.push_back(&trim::neoni8mm::kernels);
  if (cpu.dot) found.push_back(&trim::neondot::kernels);
  found.push_back(&trim::neon::kernels);
#endif
  found.push_back(&trim::portable::kernels);
  return found;
}

}  // namespace

int32_t trim_struct_sizes(int32_t* sizes, int32_t count) {
  std::copy_n(kStructSizes, std::min(count, kStructs), sizes);
  return kStructs;
}

TrimEngine* trim_open(const char* isa, int32_t threads) {
  for (const trim::Kernels* kernels : available_kernels())
    if (!isa || !*isa || !strcmp(isa, kernels->name)) return new TrimEngine(kernels, threads);
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

void trim_draw(TrimEngine* engine, const TrimMatrix* matrix, const TrimHeadScreen* screening,
               const float* x, const TrimDraw* draws, int32_t rows, int32_t* outputs) {
  if (rows)
    engine->kernels->draw(*matrix, screening, x, draws, rows, engine->buffers, engine->pool,
                          outputs);
}
