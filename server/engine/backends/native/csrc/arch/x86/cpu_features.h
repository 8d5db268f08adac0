// Which instruction sets this x86 processor and its operating system support.
//
// Read from CPUID, because the compilers' __builtin_cpu_supports knows different names.
#pragma once
#include <cpuid.h>

namespace trim {

struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA and F16C
  bool avxvnni = false;     // and 256-bit VNNI without AVX-512
  bool avx512 = false;      // AVX2 and AVX-512 F, BW, VL and VNNI
  bool avx512bf16 = false;  // and BF16
};

inline CpuFeatures cpu_features() {
  CpuFeatures found;
  unsigned a, b, c, d;
  const auto bit = [](unsigned word, int index) { return (word >> index & 1) != 0; };
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), f16c = bit(c, 29);
  if (!osxsave) return found;
  unsigned xcr0, high;  // the registers that the operating system saves
  __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  const bool saves_ymm = (xcr0 & 0x06) == 0x06, saves_zmm = (xcr0 & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned leaves = a;
  found.avx2 = saves_ymm && fma && f16c && bit(b, 5);
  found.avx512 = found.avx2 && saves_zmm && bit(b, 16) && bit(b, 30) && bit(b, 31) && bit(c, 11);
  if (leaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return found;
  found.avxvnni = found.avx2 && bit(a, 4);
  found.avx512bf16 = found.avx512 && bit(a, 5);
  return found;
}

}  // namespace trim
