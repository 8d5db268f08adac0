// One step of the decoder. Included once for each instruction set, inside its namespace.

class Step {
 public:
  Step(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch, Buffers& buffers,
       Pool& pool)
      : model_(model), cache_(cache), batch_(batch), b_(buffers), pool_(pool) {
    hidden_ = up(model.hidden, 16);
    group_ = (model.queries + 2) * model.head_dim;
    qkv_ = up((int64_t)model.groups * group_, 16);
    mixed_ = up((int64_t)model.groups * model.queries * up(model.head_dim, 8), 8);
    const int64_t rows = batch.rows;
    b_.x.fit(rows * hidden_);
    b_.y.fit(rows * hidden_);
    b_.qkv.fit(rows * qkv_);
    b_.mixed.fit(rows * mixed_);
    b_.normed.fit(rows, model.hidden);
    b_.heads.fit(rows, (int64_t)model.groups * model.queries * model.head_dim);
    b_.neurons.fit(rows, model.ffn);
    b_.owner.fit(rows);
    for (int s = 0; s < batch.segments; ++s)
      for (int r = batch.first[s]; r < batch.first[s + 1]; ++r) b_.owner.get()[r] = s;
    plan();
  }

  void run(float* hidden) {
    pool_.run([&](int thread) {
      Local& local = b_.local[thread];
      pool_.share(batch_.rows, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) embed(r);
      });
      pool_.barrier();
      for (int i = 0; i < model_.layers; ++i) {
        attention(i, local);
        mlp(i, local);
      }
      pool_.share(batch_.rows, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r)
          norm(b_.x.get() + r * hidden_, model_.final_norm, model_.hidden,
               hidden + r * model_.hidden);
      });
    });
  }

 private:
  enum Part { kAttention, kMlp };

  // What threads do alone must not depend on who does it: all of this is per row.

  void embed(int64_t row) {
    const TrimMatrix& m = model_.embed;
    float* x = b_.x.get() + row * hidden_;
    const int64_t token = batch_.tokens[row], lane = token % 16;
    const uint8_t* block = m.data + token / 16 * Packed::output_stride(m);
    for (int64_t k = 0; k < Packed::input_blocks(m); ++k, block += Packed::input_stride(m)) {
      for (int i = 0; i < 32 && 32 * k + i < model_.hidden; ++i) {
        float value;
        if (m.bits == 4) {
          const uint8_t code = block[64 * (i % 16 / 4) + 4 * lane + i % 4];
          const uint16_t* s = (const uint16_t*)(block + 256);
          const float scale = half_to_float(s[lane]), low = half_to_float(s[16 + lane]);
          value = (i < 16 ? code & 15 : code >> 4) * scale + low;
        } else {
          const int8_t code = (int8_t)block[64 * (i / 4) + 4 * lane + i % 4];
          value = code * half_to_float(((const uint16_t*)(block + 512))[lane]);
        }
        x[32 * k + i] = value * model_.embed_scale;
      }
    }
  }

  void norm(const float* x, const float* weight, int64_t width, float* out) const {
    v8f squares = splat(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) squares = Isa::fma(load8(x + i), load8(x + i), squares);
    for (; i < width; ++i) rest += x[i] * x[i];
    const float factor = 1.0f / sqrtf((sum8(squares) + rest) / width + model_.eps);
    for (i = 0; i + 8 <= width; i += 8)
      store8(out + i, load8(x + i) * factor * load8(weight + i));
    for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
  }

  v8f activate(v8f x) const {
    if (model_.activation == TRIM_SILU) return x / (1.0f + exp8(-x));
    if (model_.activation == TRIM_GELU_TANH)
      return 0.5f * x * (1.0f + tanh8(0.7978845608f * (x + 0.044715f * x * x * x)));
    v8f y;
    for (int i = 0; i < 8; ++i) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.7071067812f));
    return y;
  }

  // Rows by what they have of a sub-block, the widest first; whole segments, in batch order.
  void members(int layer, Part part, Members& out) const {
    out.row.fit(batch_.rows);
    out.width.fit(batch_.rows);
    out.count = 0;
    int below = INT32_MAX;
    for (;;) {
      int widest = 0;
      for (int s = 0; s < batch_.segments; ++s) {
        const int width = units(s, layer, part);
        if (width < below && width > widest) widest = width;
      }
      if (widest == 0) return;
      for (int s = 0; s < batch_.segments; ++s) {
        if (units(s, layer, part) != widest) continue;
        for (int r = batch_.first[s]; r < batch_.first[s + 1]; ++r) {
          out.row.get()[out.count] = r;
          out.width.get()[out.count++] = widest;
        }
      }
      below = widest;
    }
  }

  int units(int segment, int layer, Part part) const {
    const TrimVariant& v = *batch_.variants[segment];
    return part == kAttention ? v.groups[layer] : v.ffn[layer];
  }

  const TrimOwn* own(int64_t row, int layer, Part part) const {
    const TrimVariant& v = *batch_.variants[b_.owner.get()[row]];
    return part == kAttention ? v.attention[layer] : v.mlp[layer];
  }

  // With few rows every thread prepares all of them for itself, which is quicker than to meet.
  static constexpr int kFew = 3;

  template <class Body>
  void each_row(const Members& who, const Body& body) {
    if (who.count <= kFew) {
      body(0, who.count);
      return;
    }
    pool_.share(who.count, pool_.grain(who.count), body);
    pool_.barrier();
  }

  Quantised& prepared(const Members& who, Quantised& shared, Quantised& mine) const {
    if (who.count > kFew) return shared;
    mine.fit(batch_.rows, shared.inputs);
    return mine;
  }

  const Quantised& normed(const Members& who, const float* weight, Local& local) {
    float* buffer = local.line.fit(hidden_);
    Quantised& out = prepared(who, b_.normed, local.normed);
    each_row(who, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = who.row.get()[i];
        norm(b_.x.get() + r * hidden_, weight, model_.hidden, buffer);
        quantise(buffer, model_.hidden, out.code(r), out.scale(r), out.sum(r));
      }
    });
    return out;
  }

  void attention(int index, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    const Quantised* inputs = &b_.heads;
    Members& who = local.members;
    members(index, kAttention, who);
    if (who.count) {
      project(layer.qkv, who, normed(who, layer.attention_norm, local));
      if (prompts_) cache_prompts(index, who);
      mix_values(index, local);
      inputs = &collect(who, local);
      for (int i = 0; i < who.count; ++i) who.width.get()[i] *= model_.queries * model_.head_dim;
    }
    join_residual(index, kAttention, layer.o, *inputs, layer.attention_out_norm, local);
  }

  void project(const TrimMatrix& qkv, const Members& who, const Quantised& inputs) {
    const int64_t blocks = up((int64_t)who.width.get()[0] * group_, 16) / 16;
    pool_.share(blocks, pool_.grain(blocks), [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) {
        int reach = 0;
        while (reach < who.count && who.width.get()[reach] * group_ > 16 * b) ++reach;
        for (int i = 0; i < reach; ++i) {
          float* out = b_.qkv.get() + who.row.get()[i] * qkv_ + 16 * b;
          for (int o = 0; o < 16; ++o)
            out[o] = qkv.bias && 16 * b + o < qkv.outputs ? qkv.bias[16 * b + o] : 0.0f;
        }
        output_block(qkv, b, inputs, who.row.get(), nullptr, reach,
                     [&](int32_t row) { return b_.qkv.get() + row * qkv_ + 16 * b; });
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
      for (; d + 8 <= dim; d += 8) Isa::store_half(out + d, load8(x + d));
      for (; d < dim; ++d) out[d] = float_to_half(x[d]);
    }
  }

  // Which pieces of attention there are: a decoded token's chunks apart, prompt tokens in tiles.
  void plan() {
    b_.parts.assign(batch_.rows, {0, 0});
    prompts_ = false;
    const int tile = model_.queries >= 24 ? 1 : 24 / model_.queries;
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
      } else {
        prompts_ = true;
        for (int t = 0; t < tokens; t += tile)
          for (int g = 0; g < model_.groups; ++g)
            tasks_.push_back(
                {s, g, first + t, t + tile < tokens ? tile : tokens - t, -1, 0});
      }
    }
    const int64_t wide = up(model_.head_dim, 8);
    b_.partial.fit(partials * model_.queries * (wide + 2));
    rank_ = 0;
    for (int s = 0; s < batch_.segments; ++s)
      for (int i = 0; i < model_.layers; ++i)
        for (const TrimOwn* own : {batch_.variants[s]->attention[i], batch_.variants[s]->mlp[i]})
          if (own && own->outer && up(own->rank, 16) > rank_) rank_ = up(own->rank, 16);
    b_.inner.fit(batch_.rows * rank_);
  }

  float* partial(int64_t task, int query) const {
    const int64_t wide = up(model_.head_dim, 8);
    return b_.partial.get() + (task * model_.queries + query) * (wide + 2);
  }

  float* mixed(int64_t row, int64_t head) const {
    return b_.mixed.get() + row * mixed_ + head * up(model_.head_dim, 8);
  }

  void mix_values(int index, Local& local) {
    pool_.share((int64_t)tasks_.size(), 1, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const Task& task = tasks_[t];
        if (task.group < units(task.segment, index, kAttention)) mix_task(index, task, local);
      }
    });
    pool_.barrier();
  }

  void mix_task(int index, const Task& task, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    const int queries = model_.queries, dim = model_.head_dim, rows = task.tokens * queries;
    const int64_t wide = up(dim, 8);
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
    const auto chunk = [&](int64_t c, Partial* out) {
      const int64_t to = (c + 1) * kChunk < held ? (c + 1) * kChunk : held;
      const int32_t* cached = batch_.cached[s];
      if (cached) cached += (int64_t)index * batch_.cached_stride[s];
      attend(heads, q, position, rows, batch_.start[s], c * kChunk, to, cached, layer.window, model_.softmax_scale, local, out);
    };
    if (task.chunk >= 0) {
      for (int r = 0; r < rows; ++r) now[r].mixed = partial(task.partial, r) + 2;
      chunk(task.chunk, now.data());
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
    const bool ordered = batch_.cached[s] == nullptr;
    for (int64_t c = 0; c * kChunk < held; ++c) {
      if (ordered && c * kChunk > position[rows - 1]) break;  // all later than these tokens
      if (ordered && layer.window && (c + 1) * kChunk <= position[0] - layer.window + 1) continue;
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
    float* line = local.line.fit(heads * dim + up(dim, 8));
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
        quantise(line, width, out.code(r), out.scale(r), out.sum(r));
        for (int64_t block = up(width, 32) / 32; 32 * block < widest; ++block)
          nothing(out.code(r), out.scale(r), out.sum(r), block);
      }
    });
    return out;
  }

  TRIM_INLINE void nothing(int8_t* codes, float* scales, float* sums, int64_t block) {
    memset(codes + 32 * block, 0, 32);
    scales[block] = sums[block] = 0.0f;
  }

  void mlp(int index, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    Members& who = local.members;
    members(index, kMlp, who);
    if (who.count) {
      neurons(layer.gate_up, who, normed(who, layer.mlp_norm, local), local);
    }
    join_residual(index, kMlp, layer.down, b_.neurons, layer.mlp_out_norm, local);
  }

  // Activations of 32 neurons at a time, quantised as soon as they are there.
  void neurons(const TrimMatrix& gate_up, const Members& who, const Quantised& inputs,
               Local& local) {
    constexpr int kGroup = Isa::kRows;
    float* room = local.line.fit(64 * kGroup);
    const int64_t units = up(who.width.get()[0], 32) / 32;
    pool_.share(units, pool_.grain(units), [&](int64_t from, int64_t to) {
      for (int64_t u = from; u < to; ++u) {
        const int reach = who.reach(32 * u);
        for (int begin = 0; begin < who.count; begin += kGroup) {
          const int n = begin + kGroup < who.count ? kGroup : who.count - begin;
          const int here = reach - begin < n ? reach - begin : n;
          if (here > 0) gates(gate_up, inputs, who, begin, here, u, room);
          for (int m = 0; m < n; ++m) {
            const int64_t r = who.row.get()[begin + m];
            Quantised& q = b_.neurons;
            int8_t* codes = q.code(r);
            float *scales = q.scale(r), *sums = q.sum(r);
            if (m >= here) {
              nothing(codes, scales, sums, u);
              continue;
            }
            const int64_t left = who.width.get()[begin + m] - 32 * u;
            quantise(room + 64 * m, left < 32 ? left : 32, codes + 32 * u, scales + u, sums + u);
          }
        }
      }
    });
    pool_.barrier();
  }

  // room[64 m ..]: the activations of neurons 32u.. of `n` rows from `begin` on.
  void gates(const TrimMatrix& gate_up, const Quantised& inputs, const Members& who, int begin,
             int n, int64_t u, float* room) {
    Tile tile;
    const int blocks = (int)Packed::input_blocks(gate_up);
    for (int m = 0; m < n; ++m) tile.input(m, inputs, who.row.get()[begin + m]);
    for (int half = 0; half < 2 && 32 * u + 16 * half < model_.ffn; ++half) {
      for (int side = 0; side < 2; ++side) {
        const int64_t block = 4 * u + 2 * half + side;
        for (int m = 0; m < n; ++m) {
          float* out = tile.out[m] = room + 64 * m + 32 * side + 16 * half;
          for (int o = 0; o < 16; ++o)
            out[o] = gate_up.bias ? gate_up.bias[16 * block + o] : 0.0f;
        }
        tile.product(n, gate_up, block, 0, blocks);
      }
    }
    for (int m = 0; m < n; ++m)
      for (int i = 0; i < 32; i += 8) {
        float* gate = room + 64 * m + i;
        store8(gate, activate(load8(gate)) * load8(gate + 32));
      }
  }

  // x += out_norm(matrix(inputs) + own part), and the constants of rows that skip the block.
  void join_residual(int index, Part part, const TrimMatrix& matrix, const Quantised& inputs,
                     const float* out_norm, Local& local) {
    const Members& who = local.members;
    float* target = (out_norm ? b_.y : b_.x).get();
    const bool owned = inner_products(index, part, inputs, who);
    const int64_t blocks = hidden_ / 16;
    int32_t* rows = local.rows.fit(batch_.rows);
    int32_t* widths = local.widths.fit(batch_.rows);
    int shared = 0;
    for (int i = 0; i < who.count; ++i) {
      const TrimOwn* mine = own(who.row.get()[i], index, part);
      if (mine && mine->replaces) continue;
      rows[shared] = who.row.get()[i];
      widths[shared++] = who.width.get()[i];
    }
    pool_.share(blocks, pool_.grain(blocks), [&](int64_t from, int64_t to) {
      const int64_t begin = 16 * from;
      const auto place = [&](int32_t row) { return target + row * hidden_ + begin; };
      for (int i = 0; i < who.count; ++i) {
        const int32_t r = who.row.get()[i];
        if (out_norm) memset(place(r), 0, 16 * (to - from) * sizeof(float));
        const TrimOwn* mine = own(r, index, part);
        if (mine && mine->replaces)
          output_blocks(*mine->inner, from, to, inputs, &r, &who.width.get()[i], 1, place);
        else if (matrix.bias)
          add(place(r), matrix.bias, begin, 16 * to);
      }
      output_blocks(matrix, from, to, inputs, rows, widths, shared, place);
      if (owned) own_parts(index, part, target, begin, 16 * to);
    });
    pool_.barrier();
    if (out_norm && who.count) {
      float* buffer = local.line.fit(hidden_);
      pool_.share(who.count, pool_.grain(who.count), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const int64_t r = who.row.get()[i];
          norm(b_.y.get() + r * hidden_, out_norm, model_.hidden, buffer);
          for (int64_t d = 0; d < model_.hidden; ++d) b_.x.get()[r * hidden_ + d] += buffer[d];
        }
      });
      pool_.barrier();
    }
  }

  void add(float* out, const float* values, int64_t begin, int64_t end) const {
    if (end > model_.hidden) end = model_.hidden;
    for (int64_t i = begin; i < end; ++i) out[i - begin] += values[i];
  }

  // The narrow products of corrections, [rows][rank]. Says whether any row has an own part.
  bool inner_products(int index, Part part, const Quantised& inputs, const Members& who) {
    bool owned = false, narrow = false;
    for (int s = 0; s < batch_.segments; ++s) {
      const TrimVariant& v = *batch_.variants[s];
      const TrimOwn* mine = part == kAttention ? v.attention[index] : v.mlp[index];
      if (!mine) continue;
      owned = true;
      narrow = narrow || mine->outer;
    }
    if (!narrow) return owned;
    pool_.share(who.count, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int32_t r = who.row.get()[i];
        const TrimOwn* mine = own(r, index, part);
        if (!mine || !mine->outer) continue;
        float* out = b_.inner.get() + (int64_t)r * rank_;
        memset(out, 0, up(mine->rank, 16) * sizeof(float));
        output_blocks(*mine->inner, 0, up(mine->rank, 16) / 16, inputs, &r,
                      &who.width.get()[i], 1, [&](int32_t) { return out; });
      }
    });
    pool_.barrier();
    return owned;
  }

  void own_parts(int index, Part part, float* target, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < batch_.rows; ++r) {
      const TrimOwn* mine = own(r, index, part);
      if (!mine) continue;
      const bool member = units(b_.owner.get()[r], index, part) > 0;
      float* out = (member ? target : b_.x.get()) + r * hidden_ + begin;
      if (mine->bias) add(out, mine->bias, begin, end);
      if (!member || !mine->outer) continue;
      const float* inner = b_.inner.get() + r * rank_;
      for (int k = 0; k < mine->rank; ++k) {
        const uint16_t* column = mine->outer + k * hidden_ + begin;
        const v8f factor = splat(inner[k]);
        for (int64_t i = 0; i < end - begin; i += 8)
          store8(out + i, Isa::fma(factor, Isa::load_half(column + i), load8(out + i)));
      }
    }
  }

  const TrimModel& model_;
  const TrimCache& cache_;
  const TrimBatch& batch_;
  Buffers& b_;
  Pool& pool_;
  std::vector<Task> tasks_;
  bool prompts_ = false;
  int64_t hidden_, group_, qkv_, mixed_, rank_;
};
