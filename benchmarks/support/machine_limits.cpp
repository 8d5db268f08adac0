// What one machine can do, measured by loops that do nothing else.
//
//   limit_clock_hz                   clock of a core, by a chain of additions of one cycle each
//   limit_read_bytes_per_second      reading memory with all threads
//   limit_*_multiply_adds_per_cycle  of one core, operands in registers; 0: no such instruction
//
// Compiled for the processor it runs on: c++ -O3 -march=native -std=c++20 -shared -fPIC -pthread.
#include <time.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds that this thread has computed: not those in which others had its core.
double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

constexpr int64_t kRounds = 4000000;

// Return multiply-adds per second, if `step(sum)` does `each` of them. Ten independent sums hide
// the latency of an instruction; `asm` keeps every instruction, and the sums in registers.
template <class Vector, class Step>
double rate(Vector zero, int each, const Step& step) {
  Vector a = zero, b = zero, c = zero, d = zero, e = zero;
  Vector f = zero, g = zero, h = zero, i = zero, j = zero;
  const double started = thread_seconds();
  for (int64_t round = 0; round < kRounds; ++round) {
    step(a), step(b), step(c), step(d), step(e);
    step(f), step(g), step(h), step(i), step(j);
#if defined(__AVX2__)
    asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e));
    asm volatile("" : "+x"(f), "+x"(g), "+x"(h), "+x"(i), "+x"(j));
#endif
  }
  return each * 10 * (double)kRounds / (thread_seconds() - started);
}

}  // namespace

extern "C" {

double limit_clock_hz() {
  const int64_t count = 200000000;
  int64_t x = 0;
  const double started = thread_seconds();
  for (int64_t i = 0; i < count; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      x += i;
      asm volatile("" : "+r"(x));
    }
  }
  return count / (thread_seconds() - started);
}

double limit_read_bytes_per_second(const uint64_t* data, int64_t words, int threads) {
  std::vector<std::thread> workers;
  std::vector<uint64_t> sums(16 * threads);
  const int64_t part = words / threads;
  const double started = now();
  for (int t = 0; t < threads; ++t)
    workers.emplace_back([=, &sums] {
      uint64_t sum = 0;
      for (int64_t i = t * part; i < (t + 1) * part; ++i) sum += data[i];
      sums[16 * t] = sum;
    });
  for (auto& worker : workers) worker.join();
  const double seconds = now() - started;
  volatile uint64_t sink = sums[0];
  (void)sink;
  return 8.0 * part * threads / seconds;
}

// int8 products, as the kernels of this processor compute them.
double limit_int8_multiply_adds_per_cycle(double clock_hz) {
#if defined(__AVX512VNNI__)
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
  return rate(_mm512_setzero_si512(), 64, [&](__m512i& s) { s = _mm512_dpbusd_epi32(s, a, b); }) /
         clock_hz;
#elif defined(__AVXVNNI__)
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1);
  return rate(_mm256_setzero_si256(), 32,
              [&](__m256i& s) { s = _mm256_dpbusd_avx_epi32(s, a, b); }) /
         clock_hz;
#elif defined(__AVX2__)
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(1);
  return rate(_mm256_setzero_si256(), 32,
              [&](__m256i& s) {
                asm volatile("" : "+x"(a));
                s = _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b));
              }) /
         clock_hz;
#else
  (void)clock_hz;
  return 0;
#endif
}

double limit_fp32_multiply_adds_per_cycle(double clock_hz) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_set1_ps(0.5f);
  return rate(_mm512_setzero_ps(), 16, [&](__m512& s) { s = _mm512_fmadd_ps(s, a, a); }) / clock_hz;
#elif defined(__FMA__)
  const __m256 a = _mm256_set1_ps(0.5f);
  return rate(_mm256_setzero_ps(), 8, [&](__m256& s) { s = _mm256_fmadd_ps(s, a, a); }) / clock_hz;
#else
  (void)clock_hz;
  return 0;
#endif
}

double limit_bf16_multiply_adds_per_cycle(double clock_hz) {
#if defined(__AVX512BF16__)
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00);
  return rate(_mm512_setzero_ps(), 32, [&](__m512& s) { s = _mm512_dpbf16_ps(s, a, a); }) /
         clock_hz;
#else
  (void)clock_hz;
  return 0;
#endif
}
}
