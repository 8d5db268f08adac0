// The memory of a step: quantised rows, what all threads share, and what each thread has.
//
// Quantised rows (`QuantisedRows`), the inputs of packed matrices. A row is cut in blocks of 32:
//
//   value[i]        = code[i] * scale[i / 32], code -127..127
//   sum[k]          = scale[k] * sum of the codes of block k   (for the minima of 4-bit weights)
//   compensation[k] = -128 * sum of the codes of block k       (for unsigned 8-bit weights)
#pragma once
#include <cstdint>
#include <new>
#include <vector>

#include "include/native.h"

namespace trim {

inline int64_t max_int64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int min_int(int64_t a, int b) { return a < b ? (int)a : b; }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// An array that only grows. Its contents are lost when it grows. Freed with the engine.
template <class T>
class Scratch {
 public:
  ~Scratch() { release(); }
  T* reserve(int64_t count) {
    if (count > capacity_) {
      release();
      const int64_t capacity = count + count / 4;
      data_ = (T*)::operator new(round_up(capacity * sizeof(T), 64), kAlignment);
      capacity_ = capacity;
    }
    return data_;
  }
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    ::operator delete(data_, kAlignment);
    data_ = nullptr;
    capacity_ = 0;
  }
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

struct QuantisedRows {
  int64_t inputs = 0, blocks = 0;  // of a row, padded to whole blocks
  Scratch<int8_t> codes;           // [rows][inputs]
  Scratch<float> scales, sums;     // [rows][blocks]
  Scratch<int32_t> compensations;  // [rows][blocks]

  void resize(int64_t rows, int64_t width) {
    inputs = round_up(width, TRIM_INPUTS);
    blocks = inputs / TRIM_INPUTS;
    codes.reserve(rows * inputs);
    scales.reserve(rows * blocks);
    sums.reserve(rows * blocks);
    compensations.reserve(rows * blocks);
  }
  int8_t* code(int64_t row) const { return codes.get() + row * inputs; }
  float* scale(int64_t row) const { return scales.get() + row * blocks; }
  float* sum(int64_t row) const { return sums.get() + row * blocks; }
  int32_t* compensation(int64_t row) const { return compensations.get() + row * blocks; }
};

constexpr int kTileRows = 4;
constexpr int kPrefetchBytes = 4096;

// The rows of a tile: inputs, and where the outputs are written, 16 for each output block.
struct TileRows {
  const int8_t* x[kTileRows];
  const float *scales[kTileRows], *sums[kTileRows];
  const int32_t* compensation[kTileRows];
  float* out[kTileRows];
  int64_t prefetch = kPrefetchBytes;  // bytes from the current block to the one to prefetch
};

// Consecutive active rows `first..last` with the same correction, or with none (null).
struct CorrectionRun {
  int64_t first, last;
  const TrimCorrection* correction;
};

// The rows of a batch that do not skip a sub-block, the widest first, segment by segment.
struct ActiveRows {
  Scratch<int32_t> row, width;  // [count]; `width` in units of the sub-block
  std::vector<CorrectionRun> runs;
  int count = 0;
  int count_wider_than(int64_t limit) const {
    int n = count;
    while (n > 0 && width.get()[n - 1] <= limit) --n;
    return n;
  }
};

// The partial results of attention for a single token: `count` for each KV group, from `first` on.
struct PartialRange {
  int64_t first;
  int count;
};

// Terms of head screening that all outputs share, for one row. A coarse value is off by at most
// max(deviation * spread[output], max_error).
struct CoarseRow {
  float mean_term, centre, deviation, max_error;
};

struct OutputValue {
  float value;
  int32_t output;
};

// The memory of one thread.
struct ThreadBuffers {
  std::vector<OutputValue> coarse_max, exact_max;  // by row
  std::vector<OutputValue> found;                  // outputs that filters may leave
  std::vector<float> below;                        // and values below them
  ActiveRows active;
  QuantisedRows normed, heads, input_low_rank;  // in place of the shared ones if rows are few
  Scratch<float> line, scores, transposed, values, attention_output;
  Scratch<uint32_t> pairs;
  Scratch<float> page_scores;
  Scratch<uint16_t> bf16, gathered;  // gathered: keys, then values of chosen pages
  Scratch<const float*> queries, page_queries;
  Scratch<float*> outputs;
  Scratch<int32_t> position, rows, widths, pages, gathered_positions;
};

// The memory that the threads of a step share, by row unless noted.
struct Buffers {
  Scratch<float> residual, block_output, qkv, attention_output;
  Scratch<float> partials;  // results of attention over one chunk
  Scratch<float> qk_factors;  // [2]: what a wide norm multiplies a row's queries and keys by
  Scratch<int32_t> segment_of_row;
  QuantisedRows normed;          // after the norm: inputs of qkv, gate_up and head
  QuantisedRows heads, neurons;  // inputs of o and down
  QuantisedRows input_low_rank;  // inner products of input corrections
  QuantisedRows low_rank;        // inner products of corrections
  QuantisedRows screening;       // inputs of head screening
  QuantisedRows features;        // inputs of maps, by shallow row
  Scratch<CoarseRow> coarse;
  Scratch<float> bounds;  // of output blocks, for draws with filters
  std::vector<PartialRange> partial_ranges;
  std::vector<ThreadBuffers> threads;  // by thread
};

}  // namespace trim
