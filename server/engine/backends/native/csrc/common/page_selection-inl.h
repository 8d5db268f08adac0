// Page-wise selection: a single token attends to the pages of cached tokens that may matter to it.
//
//   bound[page] = sum_d(max(q[d], 0) * highest[page][d] + min(q[d], 0) * lowest[page][d])
//
// is the highest score that a key between the elementwise `lowest` and `highest` of a page's keys
// could have. The query heads of a KV group share their pages: the first page, the latest, and those
// of the highest softmax of bounds, the mean over these heads. It is Quest (Tang et al. 2024, arXiv
// 2406.10774) by KV groups. Layout of the bounds: `TrimBatch` in native.h.

constexpr int kPage = TRIM_PAGE_SLOTS;
static_assert(kPage == kSlots && kChunk % kPage == 0, "pages are tiles of a chunk");

// The bounds of one segment, layer and KV group, and how many of its pages a token attends to.
class PageBounds {
 public:
  PageBounds(const TrimModel& model, const TrimBatch& batch, int segment, int64_t layer,
             int64_t group)
      : dim_(model.head_dim), length_(batch.cache_length[segment]) {
    uint16_t* all = batch.page_bounds ? batch.page_bounds[segment] : nullptr;
    if (!all) return;
    taken_ = batch.pages_taken[segment];
    bounds_ =
        all + (layer * model.groups + group) * batch.page_bounds_stride[segment] * 2 * dim_;
  }

  // Return whether fewer pages are taken than there are.
  bool selects() const { return bounds_ && pages() > taken_; }

  // Widen the bounds of the last page by the newest key, [head_dim].
  void add(const float* key) const {
    if (!bounds_) return;
    const int64_t slot = length_ - 1;
    uint16_t* highest = bounds_ + slot / kPage * 2 * dim_;
    uint16_t* lowest = highest + dim_;
    for (int d = 0; d < dim_; ++d) {
      const uint16_t rounded = float_to_bf16(key[d]);
      const float x = bf16_to_float(rounded);
      if (slot % kPage == 0 || x > bf16_to_float(highest[d])) highest[d] = rounded;
      if (slot % kPage == 0 || x < bf16_to_float(lowest[d])) lowest[d] = rounded;
    }
  }

  // Return the pages that a token attends to, rising, [taken]. `queries` are the heads of its KV
  // group.
  const int32_t* choose(const float* const* queries, int heads, float scale,
                        ThreadBuffers& scratch) const {
    // The pages of the latest tokens are taken, and have no part in the softmax.
    const int64_t bounded = (length_ - TRIM_PAGE_RECENT) / kPage, latest = pages() - bounded;
    const float* scores = score(queries, heads, bounded, scale, scratch);
    int32_t* chosen = scratch.pages.reserve(pages());
    for (int64_t p = 0; p < pages(); ++p) chosen[p] = (int32_t)p;
    const int64_t best = taken_ - latest;  // with the first page
    std::nth_element(chosen + 1, chosen + best, chosen + bounded, [&](int32_t a, int32_t b) {
      return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    });
    std::sort(chosen + 1, chosen + best);
    for (int64_t p = 0; p < latest; ++p) chosen[best + p] = (int32_t)(bounded + p);
    return chosen;
  }

  int64_t length() const { return length_; }
  int taken() const { return taken_; }

 private:
  int64_t pages() const { return (length_ + kPage - 1) / kPage; }

  // Return the score of each of the first `pages` pages. It is no number less than 0.
  const float* score(const float* const* queries, int heads, int64_t pages, float scale,
                     ThreadBuffers& scratch) const {
    const int64_t chunks = (pages + kChunk - 1) / kChunk, padded = chunks * kChunk;
    // Bounds are keys of twice the dimensions to queries that are split by their sign.
    float* split = scratch.page_scores.reserve((int64_t)heads * (2 * dim_ + padded) + padded);
    float* bounds = split + (int64_t)heads * 2 * dim_;  // [chunks][heads][kChunk]
    float* scores = bounds + heads * padded;
    const float** by_head = scratch.page_queries.reserve(heads);
    for (int h = 0; h < heads; ++h) {
      float* parts = split + (int64_t)h * 2 * dim_;
      by_head[h] = parts;
      for (int d = 0; d < dim_; ++d) {
        parts[d] = queries[h][d] > 0.0f ? queries[h][d] : 0.0f;
        parts[dim_ + d] = queries[h][d] < 0.0f ? queries[h][d] : 0.0f;
      }
    }
    const CachedHead keys(2 * dim_, bounds_, bounds_);
    for (int64_t c = 0; c < chunks; ++c)
      score_chunk(keys, by_head, heads, c * kChunk, min_int(pages - c * kChunk, kChunk), scale,
                  scratch, bounds + c * heads * kChunk);
    memset(scores, 0, padded * sizeof(float));
    for (int h = 0; h < heads; ++h) add_softmax(bounds + h * kChunk, heads, pages, scores);
    return scores;
  }

  // scores[page] += softmax(bounds), for the bounds of one head, every `heads` chunks.
  void add_softmax(float* bounds, int heads, int64_t pages, float* scores) const {
    const auto at = [&](int64_t page) {
      return bounds + page / kChunk * heads * kChunk + page % kChunk;
    };
    const int64_t padded = round_up(pages, 8);
    for (int64_t p = pages; p < padded; ++p) *at(p) = -INFINITY;
    v8f highest = splat(-INFINITY), sum = splat(0);
    for (int64_t p = 0; p < padded; p += 8) highest = max8(highest, load8(at(p)));
    const float max = max_element8(highest);
    for (int64_t p = 0; p < padded; p += 8) {
      const v8f raw = load8(at(p)), e = Isa::exp(raw - max);
      // A bound that is no number gets no weight, so that pages can be ordered.
      const v8f weights = raw > splat(-INFINITY) ? e : splat(0);
      store8(at(p), weights);
      sum += weights;
    }
    const float total = sum8(sum);
    if (!(total > 0.0f)) return;
    for (int64_t p = 0; p < padded; p += 8)
      store8(scores + p, load8(scores + p) + load8(at(p)) * (1.0f / total));
  }

  int dim_, taken_ = 0;
  int64_t length_;
  uint16_t* bounds_ = nullptr;
};

// Compute the results of the query heads of a KV group, all at the same position, over the chosen
// pages of a sequence whose first slot is `start`. Keys and values are gathered chunk by chunk.
// Write to `out`, whose `values` are given. `part` is scratch memory, [heads] with values.
static void attend_to_pages(const CachedHead& head, const PageBounds& bounds,
                            const float* const* queries, const int32_t* position, int heads,
                            int64_t start, int window, float scale, ThreadBuffers& scratch,
                            PartialSoftmax* part, PartialSoftmax* out) {
  const int dim = head.dim(), taken = bounds.taken();
  const int32_t* pages = bounds.choose(queries, heads, scale, scratch);
  uint16_t* keys = scratch.gathered.reserve((int64_t)2 * kChunk * dim);
  uint16_t* values = keys + (int64_t)kChunk * dim;
  int32_t* positions = scratch.gathered_positions.reserve(kChunk);
  const CachedHead gathered(dim, keys, values);
  for (int h = 0; h < heads; ++h) out[h].max = -INFINITY, out[h].sum = 0.0f;
  for (int next = 0; next < taken;) {
    int count = 0;
    for (; next < taken && count < kChunk; ++next) {
      const int64_t first = (int64_t)pages[next] * kPage;
      const int n = min_int(bounds.length() - first, kPage);
      memcpy(keys + count * dim, head.bf16_keys(start + first, 1), (int64_t)n * dim * 2);
      memcpy(values + count * dim, head.bf16_values(start + first, 1), (int64_t)n * dim * 2);
      for (int i = 0; i < n; ++i) positions[count + i] = (int32_t)first + i;
      count += n;
    }
    attend(gathered, queries, position, heads, 0, 0, count, positions, window, scale, scratch,
           part, [&](int at) {
             if (next + at / kPage >= taken) return;
             const int64_t first = start + (int64_t)pages[next + at / kPage] * kPage;
             head.prefetch_keys(first);
             head.prefetch_values(first);
           });
    for (int h = 0; h < heads; ++h) merge(out[h], part[h], dim);
  }
}
