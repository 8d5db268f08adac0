// The C interface of the native kernels, and the structures that Python fills in.
//
// One call of `trim_step` runs all layers of the decoder for a ragged batch over packed weights.
// A row of a batch is one token. The result of a row depends neither on the other rows nor on the
// number of threads: all sums are computed in a fixed order.
//
// Python declares the same structures in `structures.py`. `trim_struct_sizes` lets it check that
// both sides agree.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { TRIM_OUTPUTS = 16, TRIM_INPUTS = 32 };  // size of one block of packed weights

// A packed matrix [outputs, inputs]. It consists of blocks of 16 outputs x 32 inputs:
//
//   bits | bytes  | content                          | value
//   4    | 0..255 | 4 lines of 64 bytes of codes     | code * scale + minimum, code 0..15
//        | 256..  | 16 scales, then 16 minima, fp16  |
//   8    | 0..511 | 8 lines of 64 bytes of codes     | code * scale, code -127..127
//        | 512..  | 16 scales, fp16                  |
//
//   Byte 4 * r + i of line c, for output r of the block and i = 0..3, holds
//   4 bits: input 4 * c + i in the low half, input 16 + 4 * c + i in the high half;
//   8 bits: input 4 * c + i.
//
// Output-major: the blocks of one output block are contiguous, so a prefix of outputs is, too.
// Input-major: the blocks of one input block are contiguous, so a prefix of inputs is, too.
typedef struct {
  const uint8_t* data;
  const float* bias;  // [outputs] or null
  int32_t outputs, inputs;
  int32_t bits;  // 4 or 8
  int32_t input_major;
} TrimMatrix;

// A coarse copy of an output head, to draw outputs without reading all of the head.
//
//   z[i]   = x[order[i]] * factor[i]
//   coarse = mean . x + scale * ((codes - centre) . z)
//   error <= max(spread * sqrt(sum_k(code_error[k] * |z_k|^2 + input_error[k] * |z_k - q_k|^2)),
//                max_k(max_error[k] * max|z_k|))
//
// where z_k are the 32 inputs of input block k, and q_k is z_k rounded to int8. The bound is seven
// standard deviations of the error.
//
// A code of input block k has 2 * planes[k] bits; `centre` is half of the highest code. The data
// holds, for each output block, for each input block, its planes, the highest bits first. A plane
// is 2 lines of 64 bytes. Byte 4 * r + i of line l, for output r of the block and i = 0..3, holds
// the inputs 16 l + i, 16 l + 4 + i, 16 l + 8 + i and 16 l + 12 + i, from the lowest bits on.
typedef struct {
  const uint8_t* data;
  const int32_t* planes;                              // [input blocks], 1 to 4
  const int32_t* order;                               // [inputs], padded to whole blocks
  const float *factor, *mean;                         // [inputs], padded to whole blocks
  const float *scale, *spread;                        // [outputs], padded to whole blocks
  const float *code_error, *input_error, *max_error;  // [input blocks]
} TrimHeadScreen;

// How an output is drawn for one row: it is the one with the highest
//
//   value + temperature * noise(key, output)
//
// of those that the filters leave. The noise is that of Gumbel's distribution, so this is a sample
// of the softmax of value / temperature. `server/engine/draw.py` defines noise and filters. Outputs
// whose bit in `allowed` is not set are as if their value were -inf.
typedef struct {
  float temperature;        // 0: the highest output; filters do not matter
  float top_p, min_p;       // 1 and 0: switched off
  int32_t top_k;            // 0: switched off
  uint32_t key[2];          // the lower half first
  const uint32_t* allowed;  // [outputs / 32, rounded up]: 32 outputs a word; null: all outputs
} TrimDraw;

// The part of a correction that is applied before a sub-block:
//
//   normed     = rms_norm(x) * norm  (in place of the base's norm; x * norm if it has none)
//   projection = matrix(normed) + outer(inner(normed))
//
// The outputs of `outer` are those of the kept units in the order of the projection, padded to 16.
// In an MLP the gates and the ups are padded separately.
typedef struct {
  const float* norm;                // [hidden]
  const TrimMatrix *inner, *outer;  // low-rank product, or null
} TrimInputCorrection;

// The correction of one variant for one sub-block (attention or MLP):
//
//   replaces = 0: output = matrix(inputs) + outer(inner(inputs)) + bias
//   replaces = 1: output = inner(inputs) + bias
//
// The output of a skipped sub-block is the bias.
typedef struct {
  const TrimMatrix *inner, *outer;  // or null
  const float* bias;                // [hidden] or null
  int32_t replaces;
  const TrimInputCorrection* input;  // or null
} TrimCorrection;

typedef struct {
  TrimMatrix qkv;      // per KV group: its query heads, its key, its value; output-major
  TrimMatrix o;        // input-major
  TrimMatrix gate_up;  // 16 gates, then their 16 ups, and so on; output-major
  TrimMatrix down;     // input-major
  // [hidden], or null: the projections read, or the residual sum takes, what is there as it is
  const float *attention_norm, *mlp_norm, *attention_out_norm, *mlp_out_norm;
  // [queries + 1][head_dim] for the heads of each KV group, or null. Wide: [groups][queries + 1]
  // [head_dim]; then the queries of all heads are normed together, and so are the keys.
  const float* qk_norm;
  const float *cos, *sin;  // [positions][rotated]; the first half of sin is negated
  int32_t window;          // sliding window in tokens; 0: none
  int32_t wide_qk_norm;
} TrimLayer;

enum { TRIM_SILU = 0, TRIM_GELU = 1, TRIM_GELU_TANH = 2 };

typedef struct {
  const TrimLayer* layer;   // [layers]
  TrimMatrix embed;         // output-major; an output is a token
  const float* final_norm;  // [hidden]
  int32_t layers, hidden, groups;
  int32_t queries;  // query heads of a KV group
  int32_t head_dim;
  int32_t rotated;  // the first features of a head, to which rotary embedding is applied
  int32_t ffn, activation;
  float eps, embed_scale, softmax_scale;
  float residual_scale;  // of what a block adds to the residual stream
} TrimModel;

// The widths of a variant, and its corrections; a pointer is null where there is no correction.
typedef struct {
  const int32_t *groups, *ffn;                          // [layers]
  const TrimCorrection *const *attention, *const *mlp;  // [layers]
} TrimVariant;

// Linear maps from hidden states h at the input of layer `depth` to the keys (before their norm and
// rotation) and the values of the layers from there on:
//
//   matrix(h / sqrt(mean(h^2) + 1e-6))
//
// The outputs are [layers - depth][groups][key, value, padding to a multiple of 16].
typedef struct {
  TrimMatrix matrix;  // output-major
  int32_t depth;
} TrimKVMaps;

// Cached keys and values, [layers][groups][slots][head_dim]: bf16, or int8 with a scale per head.
typedef struct {
  void *keys, *values;
  float *key_scales, *value_scales;  // [layers][groups][slots]; null with bf16
  int64_t slots;
} TrimCache;

// A page is a run of slots of one sequence. A token that attends to chosen pages takes the first
// page and those of the latest TRIM_PAGE_RECENT tokens in any case.
enum { TRIM_PAGE_SLOTS = 16, TRIM_PAGE_RECENT = 16 };

// A ragged batch. A segment is a run of rows of one sequence: a part of its prompt, or one token.
typedef struct {
  int32_t rows, segments;
  const int32_t *tokens, *positions, *slots;  // [rows]; `slots`: where keys and values are written
  const int32_t* row_offsets;                 // [segments + 1]: the first row of each segment
  const int32_t* output_rows;          // [segments]: the number of last rows whose result is needed
  const TrimVariant* const* variants;  // [segments]
  const int32_t* cache_start;          // [segments]: the first slot of the sequence
  const int32_t* cache_length;         // [segments]: the number of cached tokens, with the new ones
  // [segments]: the position of each cached token, [layers][slot_positions_stride]; null: 0, 1, ...
  const int32_t* const* slot_positions;
  const int32_t* slot_positions_stride;  // [segments]
  // [segments]: where recent queries are recorded, at position % query_window; or null.
  // [layers][query_window][groups * queries * head_dim]
  float* const* recent_queries;
  int32_t query_window;
  // Which rows are shallow, and the maps of their segments: such a row runs through the layers below
  // `depth`, and maps fill its keys and values above. Its result is not computed.
  const uint8_t* shallow;         // [rows]; null if there are no maps
  const TrimKVMaps* const* maps;  // [segments], or null; null for a segment without shallow rows
  // The elementwise maximum and minimum of the keys in each page, for segments of one row with a
  // bf16 cache in the order of positions, which then attend to `pages_taken` pages, at least 3. The
  // step adds the new keys.
  uint16_t* const* page_bounds;       // [segments], or null; [layers][groups][stride][2][head_dim]
  const int32_t* page_bounds_stride;  // [segments]
  const int32_t* pages_taken;         // [segments]
} TrimBatch;

typedef struct TrimEngine TrimEngine;

// Write the sizes in bytes of the structures above, in their order, into sizes[0..count), and
// return how many structures there are.
int32_t trim_struct_sizes(int32_t* sizes, int32_t count);

// Open an engine with `threads` threads. `isa` is the instruction set; null or "" is the fastest
// of this processor. Return null if the instruction set is not available.
TrimEngine* trim_open(const char* isa, int32_t threads);
void trim_close(TrimEngine*);

// Return the name of the instruction set in use.
const char* trim_isa(const TrimEngine*);

// Run one step. Write the hidden states after the final norm, [rows][hidden], of the rows whose
// result is needed, and the keys and values of all rows. A token outside the vocabulary gives NaN,
// in its own row only.
void trim_step(TrimEngine*, const TrimModel*, const TrimCache*, const TrimBatch*, float* hidden);

// Compute y = matrix(x), for x [rows][inputs] and y [rows][outputs].
void trim_project(TrimEngine*, const TrimMatrix*, const float* x, int32_t rows, float* y);

// Draw an output of matrix(x) for each row; -1 where the highest value is not finite. Of equal
// scores the lowest output wins. The head screening may be null; the result is the same.
void trim_draw(TrimEngine*, const TrimMatrix*, const TrimHeadScreen*, const float* x,
               const TrimDraw*, int32_t rows, int32_t* outputs);

#ifdef __cplusplus
}
#endif
