// Runs recorded calls of the native kernels, and compares what they write with what is recorded:
//
//   check_vectors ISA FILE...      the instruction set "" is the fastest of this processor
//
// Prints a line for each difference and one with the worst error. Exits with 1 if anything differs,
// and with 2 if the instruction set is not available or a file is damaged. A call is made with 1 and
// with 3 threads, which must write the same bits, and a product also row by row. The format of a
// file is described in tests/support/native_vectors.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "include/native.h"

namespace {

enum Function { kStep, kProject, kDraw };
enum Numbers { kFloat, kInt32, kBf16, kInt8, kNumbers };
constexpr int kSizes[kNumbers] = {4, 4, 2, 1};

struct Output {
  uint64_t at, count, width, numbers;
  double tolerance;
  std::vector<char> expected;
};

// A call: the memory that it reads and writes, whose first words are its arguments.
struct Call {
  uint64_t function;
  std::vector<uint64_t> image, relocations;
  std::vector<Output> outputs;
};

// Memory of a call, aligned as a cache line.
class Memory {
 public:
  explicit Memory(const Call& call)
      : words_(call.image.size() + 8),
        base_((char*)(((uintptr_t)words_.data() + 63) / 64 * 64)) {
    std::copy(call.image.begin(), call.image.end(), (uint64_t*)base_);
    for (uint64_t at : call.relocations) *(uint64_t*)(base_ + at) += (uintptr_t)base_;
  }
  char* at(uint64_t offset) const { return base_ + offset; }
  template <class T>
  T* pointer(int argument) const {
    return (T*)word(argument);
  }
  uint64_t word(int argument) const { return ((const uint64_t*)base_)[argument]; }

 private:
  std::vector<uint64_t> words_;
  char* base_;
};

[[noreturn]] void fail(const std::string& message) {
  fprintf(stderr, "%s\n", message.c_str());
  exit(2);
}

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(path, std::ios::binary) {}
  void read(void* to, uint64_t bytes) {
    if (!file_.read((char*)to, (std::streamsize)bytes)) fail(path_ + ": cannot be read");
  }
  uint64_t word() {
    uint64_t found;
    read(&found, 8);
    return found;
  }

 private:
  std::string path_;
  std::ifstream file_;
};

Call load(const std::string& path) {
  Reader file(path);
  char magic[8];
  file.read(magic, 8);
  if (memcmp(magic, "TRIMCALL", 8)) fail(path + ": no recorded call");
  Call call;
  call.function = file.word();
  call.image.resize(file.word());
  call.relocations.resize(file.word());
  call.outputs.resize(file.word());
  file.read(call.image.data(), 8 * call.image.size());
  file.read(call.relocations.data(), 8 * call.relocations.size());
  for (Output& output : call.outputs) {
    output.at = file.word();
    output.count = file.word();
    output.width = file.word();
    output.numbers = file.word();
    file.read(&output.tolerance, 8);
    if (output.numbers >= kNumbers) fail(path + ": unknown numbers");
    output.expected.resize(output.count * kSizes[output.numbers]);
    file.read(output.expected.data(), output.expected.size());
  }
  return call;
}

void run(const Call& call, TrimEngine* engine, const Memory& in) {
  switch (call.function) {
    case kStep:
      return trim_step(engine, in.pointer<TrimModel>(0), in.pointer<TrimCache>(1),
                       in.pointer<TrimBatch>(2), in.pointer<float>(3));
    case kProject:
      return trim_project(engine, in.pointer<TrimMatrix>(0), in.pointer<float>(1),
                          (int32_t)in.word(2), in.pointer<float>(3));
    case kDraw:
      return trim_draw(engine, in.pointer<TrimMatrix>(0), in.pointer<TrimHeadScreen>(1),
                       in.pointer<float>(2), in.pointer<TrimDraw>(3), (int32_t)in.word(4),
                       in.pointer<int32_t>(5));
  }
  fail("unknown function");
}

// Make the calls of a product that compute one row each.
void project_by_rows(TrimEngine* engine, const Memory& in) {
  const TrimMatrix* matrix = in.pointer<TrimMatrix>(0);
  for (int64_t r = 0; r < (int64_t)in.word(2); ++r)
    trim_project(engine, matrix, in.pointer<float>(1) + r * matrix->inputs, 1,
                 in.pointer<float>(3) + r * matrix->outputs);
}

double number(const char* p, uint64_t numbers) {
  switch (numbers) {
    case kFloat: {
      float f;
      memcpy(&f, p, 4);
      return f;
    }
    case kInt32: {
      int32_t i;
      memcpy(&i, p, 4);
      return i;
    }
    case kBf16: {
      uint16_t half;
      memcpy(&half, p, 2);
      const uint32_t bits = (uint32_t)half << 16;
      float f;
      memcpy(&f, &bits, 4);
      return f;
    }
    default: return (int8_t)*p;
  }
}

// Return the largest distance of a vector of `width` numbers to the one that is expected, relative
// to its length, or to a hundredth of the mean length where it is shorter.
double error_of(const Output& output, const char* found) {
  const int size = kSizes[output.numbers];
  double total = 0, worst = 0;
  for (uint64_t i = 0; i < output.count; ++i) {
    const double x = number(output.expected.data() + i * size, output.numbers);
    if (std::isfinite(x)) total += x * x;
  }
  const double shortest = 1e-4 * total * (double)output.width / (double)output.count + 1e-30;
  for (uint64_t i = 0; i < output.count; i += output.width) {
    double length = 0, distance = 0;
    for (uint64_t j = i; j < i + output.width; ++j) {
      const double x = number(output.expected.data() + j * size, output.numbers);
      const double y = number(found + j * size, output.numbers);
      if (std::isfinite(x) != std::isfinite(y)) return INFINITY;
      if (!std::isfinite(x)) continue;
      length += x * x;
      distance += (x - y) * (x - y);
    }
    worst = std::fmax(worst, std::sqrt(distance / std::fmax(length, shortest)));
  }
  return worst;
}

bool is_same(const Output& output, const Memory& a, const Memory& b) {
  return !memcmp(a.at(output.at), b.at(output.at), output.expected.size());
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) fail("usage: check_vectors ISA FILE...");
  TrimEngine *one = trim_open(words[1], 1), *three = trim_open(words[1], 3);
  if (!one || !three) fail(std::string("this processor has no '") + words[1] + "'");
  double worst = 0;
  bool failed = false;
  for (int i = 2; i < count; ++i) {
    const Call call = load(words[i]);
    const Memory alone(call), shared(call), by_rows(call);
    run(call, one, alone);
    run(call, three, shared);
    if (call.function == kProject) project_by_rows(one, by_rows);
    for (const Output& output : call.outputs) {
      const double error = error_of(output, alone.at(output.at));
      const bool is_close = error <= output.tolerance;
      const bool is_stable =
          is_same(output, alone, shared) &&
          (call.function != kProject || is_same(output, alone, by_rows));
      worst = std::fmax(worst, error);
      if (is_close && is_stable) continue;
      failed = true;
      printf("%s: %s at %llu, error %g of %g\n", words[i],
             is_close ? "depends on threads or rows" : "differs", (unsigned long long)output.at,
             error, output.tolerance);
    }
  }
  printf("%s: %d calls, error at most %g\n", trim_isa(one), count - 2, worst);
  trim_close(one);
  trim_close(three);
  return failed;
}
