// Attention of some queries over one chunk, for any arithmetic: scores, mask, weights, values.

// Compute the partial results of `rows` query heads of one KV group over the slots `from..to` of a
// sequence, which are counted from its first slot `start`. Row r is a query head at position[r].
// `prefetch_next(at)` is called before the values of slot from + at are read. Write to `out`, whose
// `values` are given.
template <class Prefetch>
static void attend(const CachedHead& head, const float* const* queries, const int32_t* position,
                   int rows, int64_t start, int64_t from, int64_t to,
                   const int32_t* slot_positions, int window, float scale, ThreadBuffers& scratch,
                   PartialSoftmax* out, Prefetch prefetch_next) {
  float* scores = scratch.scores.reserve((int64_t)rows * kChunk);
  const int count = (int)(to - from);
  score_chunk(head, queries, rows, start + from, count, scale, scratch, scores);
  for (int at = 0; at < count; at += kSlots)
    for (int r = 0; r < rows; ++r)
      mask_scores(scores + (int64_t)r * kChunk + at, from + at, min_int(count - at, kSlots),
                  position[r], slot_positions, window);
  const int64_t padded = round_up(count, kSlots);
  for (int r = 0; r < rows; ++r)
    softmax_weights(scores + (int64_t)r * kChunk, padded, head.padded_dim(), out[r]);
  sum_values(head, scores, rows, start + from, count, scratch, out, prefetch_next);
}
