// The engine's native half: one C call runs one step of the decoder over packed weights.
//
// Every row of a step is one token. What is computed for a row does not depend on what else is in
// the batch, nor on the number of threads: sums run in a fixed order.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { TRIM_OUTPUTS = 16, TRIM_INPUTS = 32 };  // of one block of packed weights

// A packed matrix. A block holds codes of 16 outputs by 32 inputs, then their scales.
//   4 bits: 4 lines of 64 bytes; line c holds, output after output, inputs 4c..4c+3 in the low and
//           16+4c..16+4c+3 in the high halves of the bytes; then 16 scales and 16 minima in fp16.
//           value = code * scale + minimum
//   8 bits: 8 lines of 64 bytes; line c holds inputs 4c..4c+3, signed; then 16 scales in fp16.
// Output-major: the blocks of one output block stand together, so a prefix of outputs is a run.
// Input-major: those of one input block do, so a prefix of inputs is.
typedef struct {
  const uint8_t* data;
  const float* bias;  // [outputs] or null
  int32_t outputs, inputs;
  int32_t bits;
  int32_t input_major;
} TrimMatrix;

// A coarse copy of a matrix. With z[i] = x[order[i]] * factor[i], an output is about
// mean . x + scale * (codes - centre) . z, off by less than its spread times the root of
// sum(doubt * squares of z + loss * squares of what rounding z loses) over input blocks, or than
// the largest of worst * z.
// Codes have 2 bits for each of an input block's planes, the upper ones first, and their centre is
// half of the highest. A plane is 2 lines of 64 bytes; byte i of an output in line l has inputs
// 16l + i, 16l + 4 + i, 16l + 8 + i and 16l + 12 + i, from its lower bits on.
typedef struct {
  const uint8_t* data;    // output block after output block
  const int32_t* planes;  // [input blocks], at most 4
  const int32_t* order;   // [inputs], padded like the next to whole blocks
  const float* factor;    // [inputs]
  const float* mean;      // [inputs]
  const float *scale, *spread;  // [outputs], padded to whole blocks
  const float *doubt, *loss, *worst;  // [input blocks]
} TrimPreview;

// What a variant has of its own in front of one sub-block: a norm in the place of the base's, and
// outer(inner(normed)) beside the input projection, whose outputs are those of the kept units as
// the projection has them, padded to 16 (of an MLP its gates and its ups, each).
typedef struct {
  const float* norm;                // [hidden]
  const TrimMatrix *inner, *outer;  // or null
} TrimEntry;

// What it has behind it: outer(inner(inputs)) + bias beside the shared matrix, or inner(inputs) +
// bias in its place.
typedef struct {
  const TrimMatrix *inner, *outer;  // or null
  const float* bias;
  int32_t replaces;
  const TrimEntry* entry;  // or null
} TrimOwn;

typedef struct {
  TrimMatrix qkv;      // group after group: its query heads, key, value; output-major
  TrimMatrix o;        // input-major
  TrimMatrix gate_up;  // 16 gates, their 16 ups, and so on; output-major
  TrimMatrix down;     // input-major
  const float *attention_norm, *mlp_norm;          // [hidden]
  const float *attention_out_norm, *mlp_out_norm;  // [hidden] or null
  const float* qk_norm;                            // [queries + 1][head_dim] or null
  const float *cos, *sin;  // [positions][head_dim]; the first half of sin is negated
  int32_t window;          // tokens, 0: all
} TrimLayer;

enum { TRIM_SILU = 0, TRIM_GELU = 1, TRIM_GELU_TANH = 2 };

typedef struct {
  const TrimLayer* layer;
  TrimMatrix embed;  // output-major; a token is an output
  const float* final_norm;
  int32_t layers, hidden, groups, queries, head_dim, ffn, activation;
  float eps, embed_scale, softmax_scale;
} TrimModel;

// The widths of a variant, [layers] each; own parts are null where there are none.
typedef struct {
  const int32_t *groups, *ffn;
  const TrimOwn *const *attention, *const *mlp;
} TrimVariant;

// Keys and values, [layers][groups][slots][head_dim], bf16 or int8 with a scale for each head.
typedef struct {
  void *keys, *values;
  float *key_scales, *value_scales;  // [layers][groups][slots], null with bf16
  int64_t slots;
} TrimCache;

typedef struct {
  int32_t rows, segments;
  const int32_t *tokens, *positions, *slots;  // [rows]; slots are where new tokens are cached
  const int32_t* first;                       // [segments + 1]: rows of a segment
  const int32_t* read;                        // [segments]: of how many last rows the result is read
  const TrimVariant* const* variants;         // [segments]
  const int32_t *start, *held;                // [segments]: cached slots, the new ones included
  // [segments]: the position of each held slot, [layers][cached_stride], null if 0, 1, 2, ...
  const int32_t* const* cached;
  const int32_t* cached_stride;
  // [segments]: where to note queries, [layers][query_window][groups * queries * head_dim], or null
  float* const* noted;
  int32_t query_window;
} TrimBatch;

typedef struct TrimEngine TrimEngine;

TrimEngine* trim_open(const char* isa, int32_t threads);  // null: no such instruction set here
void trim_close(TrimEngine*);
const char* trim_isa(const TrimEngine*);

// Hidden states after the final norm, [rows][hidden], of rows that are read; keys and values are
// cached of all. A token outside the vocabulary gives numbers that are none, in its own row.
void trim_step(TrimEngine*, const TrimModel*, const TrimCache*, const TrimBatch*, float* hidden);

// y = matrix(x) for x [rows][inputs]; y is [rows][outputs].
void trim_project(TrimEngine*, const TrimMatrix*, const float* x, int32_t rows, float* y);

// The output that is highest in what trim_project would give, [rows], or -1 where that is no finite
// number. The preview may be null.
void trim_best(TrimEngine*, const TrimMatrix*, const TrimPreview*, const float* x, int32_t rows,
               int32_t* best);

#ifdef __cplusplus
}
#endif
