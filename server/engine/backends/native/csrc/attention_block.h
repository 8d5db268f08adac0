// The attention sub-block of a step. Included once for each instruction set.

class Attention : public Rows {
 public:
  Attention(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch,
            Buffers& buffers, Pool& pool)
      : Rows(model, batch, buffers, pool),
        cache_(cache),
        group_((model.queries + 2) * model.head_dim),
        qkv_(up((int64_t)model.groups * group_, 16)),
        mixed_((int64_t)model.groups * model.queries * up(model.head_dim, 16)) {
    b_.qkv.fit(batch.rows * qkv_);
    b_.mixed.fit(batch.rows * mixed_);
    b_.heads.fit(batch.rows, (int64_t)model.groups * model.queries * model.head_dim);
    plan();
  }

  void attention(int index, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    const Quantised* inputs = &b_.heads;
    Members& who = local.members;
    members(index, kAttention, who);
    if (who.count) {
      project(index, who, normed(index, kAttention, who, layer.attention_norm, local));
      if (prompts_) cache_prompts(index, who);
      mix_values(index, local);
      if (last(index)) members(index, kAttention, who, true);
      if (who.count) inputs = &collect(who, local);
      for (int i = 0; i < who.count; ++i) who.width.get()[i] *= model_.queries * model_.head_dim;
    }
    join_residual(index, kAttention, layer.o, *inputs, layer.attention_out_norm, local);
  }

 private:
  // Which pieces of attention there are: a decoded token's chunks apart, prompt tokens in tiles.
  void plan() {
    b_.parts.assign(batch_.rows, {0, 0});
    const int tile = model_.queries >= 48 ? 1 : 48 / model_.queries;
    int64_t partials = 0;
    for (int s = 0; s < batch_.segments; ++s) {
      const int first = batch_.first[s], tokens = batch_.first[s + 1] - first;
      const int chunks = (batch_.held[s] + kChunk - 1) / kChunk;
      if (tokens == 1) {
        b_.parts[first] = {partials, chunks};
        for (int g = 0; g < model_.groups; ++g)
          for (int c = 0; c < chunks; ++c)
            tasks_.push_back({s, g, first, 1, c, partials + (int64_t)g * chunks + c});
        partials += (int64_t)model_.groups * chunks;
        continue;
      }
      prompts_ = true;
      for (int t = 0; t < tokens; t += tile)
        for (int g = 0; g < model_.groups; ++g)
          tasks_.push_back({s, g, first + t, t + tile < tokens ? tile : tokens - t, -1, 0});
    }
    b_.partial.fit(partials * model_.queries * (up(model_.head_dim, 16) + 2));
  }

  void project(int index, const Members& who, const Inputs& inputs) {
    const TrimMatrix& qkv = model_.layer[index].qkv;
    const int64_t blocks = up((int64_t)who.width.get()[0] * group_, 16) / 16;
    const int32_t* rows = who.row.get();
    pool_.share(blocks, pool_.grain(blocks), [&](int64_t from, int64_t to) {
      for (int64_t b = from, next; b < to; b = next) {
        const int reach = who.reach(16 * b / group_);
        next = b + 1;
        while (next < to && next < b + beside(reach) && who.reach(16 * next / group_) == reach) ++next;
        const auto place = [&](int32_t row) { return b_.qkv.get() + row * qkv_ + 16 * b; };
        for (int i = 0; i < reach; ++i) start(qkv, b, next - b, place(rows[i]));
        tiles(qkv, b, next - b, inputs.normed, {rows, nullptr, reach}, place);
        for (int64_t own = b; own < next; ++own)
          enter(who, 0, reach, inputs, own,
                [&](int64_t i) { return place(rows[i]) + 16 * (own - b); });
      }
    });
    pool_.barrier();
  }

  // Norms and rotates the queries and the key of one row's group into `out`, [queries + 1][dim].
  void turn(int index, int64_t row, int64_t group, float* out) const {
    const TrimLayer& layer = model_.layer[index];
    const int dim = model_.head_dim, half = dim / 2;
    const float* heads = b_.qkv.get() + row * qkv_ + group * group_;
    const float* cos = layer.cos + (int64_t)batch_.positions[row] * dim;
    const float* sin = layer.sin + (int64_t)batch_.positions[row] * dim;
    for (int h = 0; h <= model_.queries; ++h, heads += dim, out += dim) {
      const float* x = heads;
      if (layer.qk_norm) {
        norm(heads, layer.qk_norm + h * dim, dim, out);
        x = out;
      }
      for (int d = 0; d < half; ++d) {
        const float low = x[d], high = x[d + half];
        out[d] = low * cos[d] + high * sin[d];
        out[d + half] = high * cos[d + half] + low * sin[d + half];
      }
    }
  }

  void cache_token(int index, int64_t row, int64_t group, const float* key) const {
    const float* value =
        b_.qkv.get() + row * qkv_ + group * group_ + (model_.queries + 1) * model_.head_dim;
    const int64_t at =
        ((int64_t)index * model_.groups + group) * cache_.slots + batch_.slots[row];
    remember(cache_.keys, cache_.key_scales, at, key);
    remember(cache_.values, cache_.value_scales, at, value);
  }

  // Queries before they are rotated, for evictions that look at them.
  void note_queries(int index, int64_t row, int64_t group) const {
    float* noted = batch_.noted[b_.owner.get()[row]];
    if (!noted) return;
    const int dim = model_.head_dim;
    const int64_t place = (int64_t)index * batch_.query_window +
                          batch_.positions[row] % batch_.query_window;
    float* out = noted + (place * model_.groups + group) * model_.queries * dim;
    const float* heads = b_.qkv.get() + row * qkv_ + group * group_;
    for (int h = 0; h < model_.queries; ++h, heads += dim, out += dim) {
      if (model_.layer[index].qk_norm)
        norm(heads, model_.layer[index].qk_norm + h * dim, dim, out);
      else
        memcpy(out, heads, dim * sizeof(float));
    }
  }

  // A prompt's tokens look at each other, so all of them are cached before any is mixed. Their
  // queries and keys are turned in place; a decoded token's are turned by who mixes it.
  void cache_prompts(int index, const Members& who) {
    pool_.share(who.count, pool_.grain(who.count), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = who.row.get()[i];
        if (b_.parts[r].count) continue;
        for (int g = 0; g < who.width.get()[i]; ++g) {
          float* heads = b_.qkv.get() + r * qkv_ + g * group_;
          note_queries(index, r, g);
          turn(index, r, g, heads);
          cache_token(index, r, g, heads + model_.queries * model_.head_dim);
        }
      }
    });
    pool_.barrier();
  }

  void remember(void* store, float* scales, int64_t at, const float* x) const {
    const int dim = model_.head_dim;
    if (scales) {
      float most = 0;
      for (int d = 0; d < dim; ++d) most = fabsf(x[d]) > most ? fabsf(x[d]) : most;
      scales[at] = most / 127.0f;
      const float inverse = most > 0 ? 127.0f / most : 0.0f;
      int8_t* out = (int8_t*)store + at * dim;
      for (int d = 0; d < dim; ++d) out[d] = (int8_t)lrintf(x[d] * inverse);
    } else {
      uint16_t* out = (uint16_t*)store + at * dim;
      int d = 0;
      for (; d + 8 <= dim; d += 8) narrow8(out + d, load8(x + d));
      for (; d < dim; ++d) out[d] = narrow(x[d]);
    }
  }

  float* partial(int64_t task, int query) const {
    const int64_t wide = up(model_.head_dim, 16);
    return b_.partial.get() + (task * model_.queries + query) * (wide + 2);
  }

  float* mixed(int64_t row, int64_t head) const {
    return b_.mixed.get() + row * mixed_ + head * up(model_.head_dim, 16);
  }

  void mix_values(int index, Local& local) {
    const int64_t tasks = tasks_.size();
    pool_.share(tasks, prompts_ ? 1 : pool_.grain(tasks), [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const Task& task = tasks_[t];
        if (task.group >= units(task.segment, index, kAttention)) continue;
        const bool read = task.row + task.tokens > first_read(task.segment);
        if (read || task.chunk >= 0 || !last(index)) mix_task(index, task, local);
      }
    });
    pool_.barrier();
  }

  void mix_task(int index, const Task& task, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    const int queries = model_.queries, dim = model_.head_dim, rows = task.tokens * queries;
    const int64_t wide = up(dim, 16);
    const Heads heads(model_, cache_, index, task.group);
    const float** q = local.queries.fit(rows);
    int32_t* position = local.position.fit(rows);
    std::vector<Partial> now(rows), sum(rows);
    float* room = local.mixed.fit(rows * wide);
    const int s = task.segment;
    const int64_t held = batch_.held[s];
    const float* turned = nullptr;
    if (task.chunk >= 0) {
      float* own = local.line.fit((queries + 1) * dim);
      turn(index, task.row, task.group, own);
      const int64_t slot = batch_.slots[task.row] - batch_.start[s];
      if (slot / kChunk == task.chunk) {
        note_queries(index, task.row, task.group);
        cache_token(index, task.row, task.group, own + queries * dim);
      }
      turned = own;
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t row = task.row + r / queries;
      q[r] = turned ? turned + r * dim
                    : b_.qkv.get() + row * qkv_ + task.group * group_ + r % queries * dim;
      position[r] = batch_.positions[row];
    }
    const bool ordered = batch_.cached[s] == nullptr;
    const auto chunk = [&](int64_t c, Partial* out) {
      int64_t to = (c + 1) * kChunk < held ? (c + 1) * kChunk : held;
      // What lies behind the last of these tokens would weigh nothing.
      if (ordered && to > position[rows - 1] + 1) to = position[rows - 1] + 1;
      // A decoded token sees all that is cached, in whatever order, unless there is a window.
      const bool all = task.chunk >= 0 && !layer.window;
      const int32_t* cached = all ? nullptr : batch_.cached[s];
      if (cached) cached += (int64_t)index * batch_.cached_stride[s];
      attend(heads, q, position, rows, batch_.start[s], c * kChunk, to, held, cached,
             layer.window, model_.softmax_scale, local, out);
    };
    const auto passed = [&](int64_t c) {  // wholly behind the window of these tokens
      return ordered && layer.window && (c + 1) * kChunk <= position[0] - layer.window + 1;
    };
    if (task.chunk >= 0) {
      for (int r = 0; r < rows; ++r) now[r] = {-INFINITY, 0.0f, partial(task.partial, r) + 2};
      if (!passed(task.chunk)) chunk(task.chunk, now.data());
      for (int r = 0; r < rows; ++r) {
        float* out = partial(task.partial, r);
        out[0] = now[r].most;
        out[1] = now[r].total;
      }
      return;
    }
    for (int r = 0; r < rows; ++r) {
      now[r].mixed = room + r * wide;
      sum[r] = {-INFINITY, 0.0f,
                mixed(task.row + r / queries, (int64_t)task.group * queries + r % queries)};
    }
    for (int64_t c = 0; c * kChunk < held; ++c) {
      if (ordered && c * kChunk > position[rows - 1]) break;  // all later than these tokens
      if (passed(c)) continue;
      chunk(c, now.data());
      for (int r = 0; r < rows; ++r) join(sum[r], now[r], dim);
    }
    for (int r = 0; r < rows; ++r)
      for (int d = 0; d < dim; ++d) sum[r].mixed[d] /= sum[r].total;
  }

  // Joins a decoded token's chunks and quantises what `o` reads.
  const Quantised& collect(const Members& who, Local& local) {
    const int queries = model_.queries, dim = model_.head_dim;
    const int64_t heads = (int64_t)model_.groups * queries;
    const int64_t widest = up((int64_t)who.width.get()[0] * queries * dim, 32);
    float* line = local.line.fit(heads * dim + up(dim, 16));
    float* joined = line + heads * dim;
    Quantised& out = prepared(who, b_.heads, local.heads);
    each_row(who, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = who.row.get()[i], groups = who.width.get()[i];
        const Chunks& parts = b_.parts[r];
        for (int64_t h = 0; h < groups * queries; ++h) {
          if (!parts.count) {
            memcpy(line + h * dim, mixed(r, h), dim * sizeof(float));
            continue;
          }
          Partial sum{-INFINITY, 0.0f, joined};
          for (int c = 0; c < parts.count; ++c) {
            float* p = partial(parts.first + h / queries * parts.count + c, h % queries);
            join(sum, {p[0], p[1], p + 2}, dim);
          }
          for (int d = 0; d < dim; ++d) line[h * dim + d] = joined[d] / sum.total;
        }
        const int64_t width = groups * queries * dim;
        quantise(line, width, out, r);
        for (int64_t block = up(width, 32) / 32; 32 * block < widest; ++block)
          nothing(out, r, block);
      }
    });
    return out;
  }

  const TrimCache& cache_;
  const int64_t group_, qkv_, mixed_;
  std::vector<Task> tasks_;
  bool prompts_ = false;
};
