// Which instruction sets this ARM processor and its operating system support.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace trim {

struct CpuFeatures {
  bool dot = false;   // dot products of int8: sdot
  bool i8mm = false;  // and products of int8 matrices: smmla
};

#if defined(__APPLE__)
inline bool has_feature(const char* name) {
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found;
}
#endif

inline CpuFeatures cpu_features() {
  CpuFeatures found;
#if defined(__linux__)
  found.dot = getauxval(AT_HWCAP) >> 20 & 1;                 // HWCAP_ASIMDDP
  found.i8mm = found.dot && getauxval(AT_HWCAP2) >> 13 & 1;  // HWCAP2_I8MM
#elif defined(__APPLE__)
  found.dot = has_feature("hw.optional.arm.FEAT_DotProd");
  found.i8mm = found.dot && has_feature("hw.optional.arm.FEAT_I8MM");
#elif defined(_WIN32)
  // Numbers, because older headers do not have the names.
  found.dot = IsProcessorFeaturePresent(43);                // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  found.i8mm = found.dot && IsProcessorFeaturePresent(66);  // PF_ARM_V82_I8MM_...
#endif
  return found;
}

}  // namespace trim
