// The memory of a step: rows as the matrices read them, and what threads share or have for themselves.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "native.h"

namespace trim {

inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int least(int64_t a, int b) { return a < b ? (int)a : b; }
inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Memory that grows and is never given back while the engine lives; contents are not kept.
template <class T>
class Scratch {
 public:
  ~Scratch() { free(data_); }
  T* fit(int64_t count) {
    if (count > held_) {
      free(data_);
      held_ = count + count / 4;
      data_ = (T*)aligned_alloc(64, up(held_ * sizeof(T), 64));
      if (!data_) throw std::bad_alloc();
    }
    return data_;
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
  int64_t held_ = 0;
};

struct Quantised {
  int64_t inputs = 0, blocks = 0;  // a row's, padded to whole blocks
  Scratch<int8_t> codes;
  Scratch<float> scales, sums;  // of a block: what a code stands for, and the block's sum
  Scratch<int32_t> excesses;    // -128 times the sum of its codes

  void fit(int64_t rows, int64_t width) {
    inputs = up(width, TRIM_INPUTS);
    blocks = inputs / TRIM_INPUTS;
    codes.fit(rows * inputs);
    scales.fit(rows * blocks);
    sums.fit(rows * blocks);
    excesses.fit(rows * blocks);
  }
  int8_t* code(int64_t row) const { return codes.get() + row * inputs; }
  float* scale(int64_t row) const { return scales.get() + row * blocks; }
  float* sum(int64_t row) const { return sums.get() + row * blocks; }
  int32_t* excess(int64_t row) const { return excesses.get() + row * blocks; }
};

constexpr int kRows = 4;  // of a tile
constexpr int kAhead = 4096;

// Rows that meet blocks of weights: their inputs, and where their outputs go, 16 of each block.
struct Lines {
  const int8_t* x[kRows];
  const float *scales[kRows], *sums[kRows];
  const int32_t* excess[kRows];
  float* out[kRows];
  int64_t ahead = kAhead;  // bytes from a block to what is fetched meanwhile
};

// Neighbours among the members with the same own part, which may be null.
struct Run {
  int64_t first, last;
  const TrimOwn* own;
};

// The rows that a sub-block has work for, the widest first, in whole segments.
struct Members {
  Scratch<int32_t> row, width;
  std::vector<Run> runs;
  int count = 0;
  int reach(int64_t width_above) const {  // how many rows are wider
    int n = count;
    while (n > 0 && width.get()[n - 1] <= width_above) --n;
    return n;
  }
};

// The partial results of a decoded token's attention, for each KV group one after the other.
struct Chunks {
  int64_t first;
  int count;
};

// What the coarse values of a row share; they may be off by `doubt` times their spread or `worst`.
struct Coarse {
  float shared, centre, doubt, worst;
};

struct Highest {
  float value;
  int32_t output;
};

// What one thread needs for itself.
struct Local {
  std::vector<Highest> rough, highest;  // by row
  Members members;
  Quantised normed, heads, entered;  // with few rows, where threads do not share them
  Scratch<float> line, scores, turned, values, mixed;
  Scratch<uint32_t> pairs;
  Scratch<uint16_t> narrow;
  Scratch<const float*> queries;
  Scratch<float*> mixing;
  Scratch<int32_t> position, rows, widths;
};

// What the threads of a step share, by row unless it says otherwise.
struct Buffers {
  Scratch<float> x, y, qkv, mixed, partial;
  Scratch<int32_t> owner;  // the segment
  Quantised normed, heads, neurons;
  Quantised entered, inner;  // what low ranks have in the middle
  Quantised reordered;       // what a preview reads
  Scratch<Coarse> coarse;
  std::vector<Chunks> parts;
  std::vector<Local> local;  // by thread
};

}  // namespace trim
