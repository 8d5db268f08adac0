// The attention sub-block of a step: projection, rotation, cache, softmax, output projection.
//
// The work is cut in tasks. A segment with one token, which is the case when an answer is written,
// is split over the chunks of its cached tokens, so that several threads share one token. A segment
// with more tokens is split over its tokens. Shallow ones end at a layer, so the tokens from there on
// are split anew.

class AttentionBlock : public KVMapper {
 public:
  AttentionBlock(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
                 Buffers& buffers, ThreadPool& pool)
      : KVMapper(model, cache, batch, buffers, pool),
        output_((int64_t)model.groups * model.queries * round_up(model.head_dim, 16)) {
    b_.attention_output.reserve(batch.rows * output_);
    b_.heads.resize(batch.rows, (int64_t)model.groups * model.queries * model.head_dim);
    make_tasks();
  }

  void attention(int index, ThreadBuffers& local) {
    const TrimLayer& layer = model_.layer[index];
    const QuantisedRows* inputs = &b_.heads;
    ActiveRows& active = local.active;
    find_active_rows(index, kAttention, active);
    if (active.count) {
      project(index, active, normalise(index, kAttention, active, layer.attention_norm, local));
      if (layer.wide_qk_norm) find_wide_factors(active);
      if (has_prompts_) rotate_and_cache_prompts(index, active);
      run_tasks(index, local);
      if (is_last(index)) find_active_rows(index, kAttention, active, true);
      if (active.count) inputs = &merge_and_quantise(active, local);
      for (int i = 0; i < active.count; ++i)
        active.width.get()[i] *= model_.queries * model_.head_dim;
    }
    add_to_residual(index, kAttention, layer.o, *inputs, layer.attention_out_norm, local);
  }

 private:
  void make_tasks() {
    b_.partial_ranges.assign(batch_.rows, {0, 0});
    task_rows_.resize(batch_.rows);
    for (int r = 0; r < batch_.rows; ++r) task_rows_[r] = r;
    int64_t partials = 0;
    for (int s = 0; s < batch_.segments; ++s) {
      const int first = batch_.row_offsets[s], tokens = batch_.row_offsets[s + 1] - first;
      const bool selects = tokens == 1 && PageBounds(model_, batch_, s, 0, 0).selects();
      const int chunks = selects ? 1 : (batch_.cache_length[s] + kChunk - 1) / kChunk;
      const TrimKVMaps* maps = batch_.maps ? batch_.maps[s] : nullptr;
      const int depth = maps ? maps->depth : model_.layers;
      if (tokens == 1) {
        b_.partial_ranges[first] = {partials, chunks};
        for (int g = 0; g < model_.groups; ++g)
          for (int c = 0; c < chunks; ++c)
            tasks_.push_back({s, g, first, 1, 0, depth, selects ? kChosenPages : c,
                              partials + (int64_t)g * chunks + c});
        partials += (int64_t)model_.groups * chunks;
        continue;
      }
      has_prompts_ = true;
      add_prompt_tasks(s, first, tokens, 0, depth);
      if (!maps) continue;
      const int listed = (int)task_rows_.size();
      for (int r = first; r < first + tokens; ++r)
        if (!batch_.shallow[r]) task_rows_.push_back(r);
      add_prompt_tasks(s, listed, (int)task_rows_.size() - listed, depth, model_.layers);
    }
    b_.partials.reserve(partials * model_.queries * (round_up(model_.head_dim, 16) + 2));
  }

  // Cut the attention of the rows task_rows_[first..first + tokens) of a prompt in tasks. The rows
  // of a task are less than a chunk apart, since all of them are computed for each chunk.
  void add_prompt_tasks(int segment, int first, int tokens, int first_layer, int layers) {
    const int most = model_.queries >= 48 ? 1 : 48 / model_.queries;
    for (int t = 0, n; t < tokens; t += n) {
      const int32_t* rows = task_rows_.data() + first + t;
      for (n = 1; n < most && t + n < tokens && rows[n] - rows[n - 1] < kChunk; ++n) {}
      for (int g = 0; g < model_.groups; ++g)
        tasks_.push_back({segment, g, first + t, n, first_layer, layers, kAllChunks, 0});
    }
  }

  void project(int index, const ActiveRows& active, const ProjectionInputs& inputs) {
    const TrimMatrix& qkv = model_.layer[index].qkv;
    const int64_t blocks = round_up((int64_t)active.width.get()[0] * group_, 16) / 16;
    const int32_t* rows = active.row.get();
    pool_.share(blocks, pool_.grain(blocks), [&](int64_t from, int64_t to) {
      for (int64_t b = from, next; b < to; b = next) {
        const int count = active.count_wider_than(16 * b / group_);
        next = b + 1;
        while (next < to && next < b + blocks_together(count) &&
               active.count_wider_than(16 * next / group_) == count)
          ++next;
        const auto place = [&](int32_t row) { return b_.qkv.get() + row * qkv_ + 16 * b; };
        for (int i = 0; i < count; ++i) set_to_bias(qkv, b, next - b, place(rows[i]));
        multiply_tiles(qkv, b, next - b, inputs.normed, {rows, nullptr, count}, place);
        for (int64_t block = b; block < next; ++block)
          add_input_correction(active, 0, count, inputs, block,
                               [&](int64_t i) { return place(rows[i]) + 16 * (block - b); });
      }
    });
    pool_.barrier();
  }

  // Return the partial result of a task and query head: max, sum, values [head_dim].
  float* partial(int64_t task, int query) const {
    const int64_t padded = round_up(model_.head_dim, 16);
    return b_.partials.get() + (task * model_.queries + query) * (padded + 2);
  }

  // Return the result of attention for a row and head, [head_dim].
  float* output(int64_t row, int64_t head) const {
    return b_.attention_output.get() + row * output_ + head * round_up(model_.head_dim, 16);
  }

  void run_tasks(int index, ThreadBuffers& local) {
    const int64_t tasks = tasks_.size();
    pool_.share(tasks, has_prompts_ ? 1 : pool_.grain(tasks), [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const AttentionTask& task = tasks_[t];
        if (index < task.first_layer || index >= task.layers) continue;
        if (task.group >= width(task.segment, index, kAttention)) continue;
        const int last_row = task_rows_[task.first + task.tokens - 1];
        const bool needed = last_row >= first_output(task.segment);
        if (needed || task.chunk != kAllChunks || !is_last(index)) run_task(index, task, local);
      }
    });
    pool_.barrier();
  }

  // Run attention of one task. A single token is first rotated, and cached by the task of its
  // chunk.
  void run_task(int index, const AttentionTask& task, ThreadBuffers& local) {
    const TrimLayer& layer = model_.layer[index];
    const int queries = model_.queries, dim = model_.head_dim, rows = task.tokens * queries;
    const int64_t padded = round_up(dim, 16);
    const CachedHead head(model_, cache_, index, task.group);
    const float** q = local.queries.reserve(rows);
    int32_t* position = local.position.reserve(rows);
    std::vector<PartialSoftmax> current(rows), sum(rows);
    float* values = local.attention_output.reserve(rows * padded);
    const int s = task.segment;
    const int32_t* task_rows = task_rows_.data() + task.first;
    const int64_t length = batch_.cache_length[s];
    const float* rotated = nullptr;
    const PageBounds bounds(model_, batch_, s, index, task.group);
    const bool chosen = task.chunk == kChosenPages, single = task.chunk != kAllChunks;
    if (single) {
      float* heads = local.line.reserve((queries + 1) * dim);
      norm_and_rotate(index, *task_rows, task.group, heads);
      const int64_t slot = batch_.slots[*task_rows] - batch_.cache_start[s];
      if (chosen || slot / kChunk == task.chunk) {
        record_queries(index, *task_rows, task.group);
        cache_token(index, *task_rows, task.group, heads + queries * dim);
        bounds.add(heads + queries * dim);
      }
      rotated = heads;
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t row = task_rows[r / queries];
      q[r] = rotated ? rotated + r * dim
                     : b_.qkv.get() + row * qkv_ + task.group * group_ + r % queries * dim;
      position[r] = batch_.positions[row];
    }
    const bool ordered = batch_.slot_positions[s] == nullptr;
    const auto attend_chunk = [&](int64_t c, PartialSoftmax* out) {
      int64_t to = (c + 1) * kChunk < length ? (c + 1) * kChunk : length;
      // Slots behind the last of these tokens have no weight.
      if (ordered && to > position[rows - 1] + 1) to = position[rows - 1] + 1;
      // A single token attends to all that is cached, so positions matter only with a window.
      const bool attends_to_all = single && !layer.window;
      const int32_t* positions = attends_to_all ? nullptr : batch_.slot_positions[s];
      if (positions) positions += (int64_t)index * batch_.slot_positions_stride[s];
      const int64_t start = batch_.cache_start[s];
      attend(head, q, position, rows, start, c * kChunk, to, positions, layer.window,
             model_.softmax_scale, local, out, [&](int at) {
               if (to + at < length) head.prefetch_keys(start + to + at);
             });
    };
    const auto before_window = [&](int64_t c) {  // of all these tokens
      return ordered && layer.window && (c + 1) * kChunk <= position[0] - layer.window + 1;
    };
    if (single) {
      for (int r = 0; r < rows; ++r) {
        current[r] = {-INFINITY, 0.0f, partial(task.partial, r) + 2};
        sum[r].values = values + r * padded;
      }
      if (chosen)
        attend_to_pages(head, bounds, q, position, rows, batch_.cache_start[s], layer.window,
                        model_.softmax_scale, local, sum.data(), current.data());
      else if (!before_window(task.chunk))
        attend_chunk(task.chunk, current.data());
      for (int r = 0; r < rows; ++r) {
        float* out = partial(task.partial, r);
        out[0] = current[r].max;
        out[1] = current[r].sum;
      }
      return;
    }
    for (int r = 0; r < rows; ++r) {
      current[r].values = values + r * padded;
      sum[r] = {-INFINITY, 0.0f,
                output(task_rows[r / queries], (int64_t)task.group * queries + r % queries)};
    }
    for (int64_t c = 0; c * kChunk < length; ++c) {
      if (ordered && c * kChunk > position[rows - 1]) break;  // all later than these tokens
      if (before_window(c)) continue;
      attend_chunk(c, current.data());
      for (int r = 0; r < rows; ++r) merge(sum[r], current[r], dim);
    }
    for (int r = 0; r < rows; ++r)
      for (int d = 0; d < dim; ++d) sum[r].values[d] /= sum[r].sum;
  }

  // Merge the chunks of single tokens, and quantise the inputs of the output projection.
  const QuantisedRows& merge_and_quantise(const ActiveRows& active, ThreadBuffers& local) {
    const int queries = model_.queries, dim = model_.head_dim;
    const int64_t heads = (int64_t)model_.groups * queries;
    const int64_t widest = round_up((int64_t)active.width.get()[0] * queries * dim, 32);
    float* line = local.line.reserve(heads * dim + round_up(dim, 16));
    float* merged = line + heads * dim;
    QuantisedRows& out = destination(active, b_.heads, local.heads);
    for_active_rows(active, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = active.row.get()[i], groups = active.width.get()[i];
        const PartialRange& range = b_.partial_ranges[r];
        for (int64_t h = 0; h < groups * queries; ++h) {
          if (!range.count) {
            memcpy(line + h * dim, output(r, h), dim * sizeof(float));
            continue;
          }
          PartialSoftmax sum{-INFINITY, 0.0f, merged};
          for (int c = 0; c < range.count; ++c) {
            float* p = partial(range.first + h / queries * range.count + c, h % queries);
            merge(sum, {p[0], p[1], p + 2}, dim);
          }
          for (int d = 0; d < dim; ++d) line[h * dim + d] = merged[d] / sum.sum;
        }
        const int64_t width = groups * queries * dim;
        quantise(line, width, out, r);
        for (int64_t block = round_up(width, 32) / 32; 32 * block < widest; ++block)
          zero_block(out, r, block);
      }
    });
    return out;
  }

  const int64_t output_;
  std::vector<AttentionTask> tasks_;
  std::vector<int32_t> task_rows_;  // the rows of the tasks
  bool has_prompts_ = false;
};
