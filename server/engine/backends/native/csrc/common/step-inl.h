// One step of the decoder: embedding, for each layer attention and MLP, final norm.
//
//   MLP: down(activation(gate(normed)) * up(normed))
//
// Rows of `gate_up` are 16 gates, then their 16 ups, and so on, so 32 neurons are 4 output blocks.

class Step : public AttentionBlock {
 public:
  Step(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch, Buffers& buffers,
       ThreadPool& pool)
      : AttentionBlock(model, cache, batch, buffers, pool) {
    b_.neurons.resize(batch.rows, model.ffn);
  }

  void run(float* hidden) {
    pool_.run([&](int thread) {
      ThreadBuffers& local = b_.threads[thread];
      pool_.share(batch_.rows, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) embed(r);
      });
      pool_.barrier();
      for (int i = 0; i < model_.layers; ++i) {
        map_shallow_rows(i, local);
        attention(i, local);
        mlp(i, local);
      }
      pool_.share(batch_.rows, 4, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r)
          norm(b_.residual.get() + r * hidden_, model_.final_norm, model_.hidden,
               hidden + r * model_.hidden);
      });
    });
  }

 private:
  // residual[row] = embedding of its token * embed_scale.
  void embed(int64_t row) {
    const TrimMatrix& m = model_.embed;
    float* x = b_.residual.get() + row * hidden_;
    const int64_t token = batch_.tokens[row], lane = token % 16;
    if (token < 0 || token >= m.outputs) {
      for (int i = 0; i < model_.hidden; ++i) x[i] = NAN;
      return;
    }
    const uint8_t* block = m.data + token / 16 * PackedLayout::output_stride(m);
    for (int64_t k = 0; k < PackedLayout::input_blocks(m);
         ++k, block += PackedLayout::input_stride(m)) {
      for (int i = 0; i < 32 && 32 * k + i < model_.hidden; ++i) {
        float value;
        if (m.bits == 4) {
          const uint8_t code = block[64 * (i % 16 / 4) + 4 * lane + i % 4];
          const uint16_t* s = (const uint16_t*)(block + 256);
          const float scale = half_to_float(s[lane]), minimum = half_to_float(s[16 + lane]);
          value = (i < 16 ? code & 15 : code >> 4) * scale + minimum;
        } else {
          const int8_t code = (int8_t)block[64 * (i / 4) + 4 * lane + i % 4];
          value = code * half_to_float(((const uint16_t*)(block + 512))[lane]);
        }
        x[32 * k + i] = value * model_.embed_scale;
      }
    }
  }

  v8f activate(v8f x) const {
    if (model_.activation == TRIM_SILU) return x / (1.0f + Isa::exp(-x));
    if (model_.activation == TRIM_GELU_TANH) {
      const v8f e = Isa::exp(1.5957691216f * (x + 0.044715f * x * x * x));
      return x - x / (e + 1.0f);  // = x / 2 * (1 + tanh(...))
    }
    v8f y;
    for (int i = 0; i < 8; ++i) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.7071067812f));
    return y;
  }

  void mlp(int index, ThreadBuffers& local) {
    const TrimLayer& layer = model_.layer[index];
    ActiveRows& active = local.active;
    find_active_rows(index, kMlp, active, is_last(index));
    if (active.count) {
      compute_neurons(index, active, normalise(index, kMlp, active, layer.mlp_norm, local), local);
    }
    add_to_residual(index, kMlp, layer.down, b_.neurons, layer.mlp_out_norm, local);
  }

  // Compute and quantise the neurons, 32 at a time: the inputs of the down projection.
  void compute_neurons(int index, const ActiveRows& active, const ProjectionInputs& inputs,
                       ThreadBuffers& local) {
    float* values = local.line.reserve(64 * kTileRows);
    const int64_t units = round_up(active.width.get()[0], 32) / 32;
    pool_.share(units, pool_.grain(units), [&](int64_t from, int64_t to) {
      for (int64_t u = from; u < to; ++u) {
        const int wide_enough = active.count_wider_than(32 * u);
        for (int begin = 0; begin < active.count; begin += kTileRows) {
          const int n = min_int(active.count - begin, kTileRows);
          const int computed = min_int(wide_enough - begin, n);
          if (computed > 0) compute_unit(index, inputs, active, begin, computed, u, values);
          for (int m = 0; m < n; ++m) {
            const int64_t r = active.row.get()[begin + m];
            if (m >= computed) {
              zero_block(b_.neurons, r, u);
              continue;
            }
            const int64_t left = active.width.get()[begin + m] - 32 * u;
            quantise(values + 64 * m, left < 32 ? left : 32, b_.neurons, r, u);
          }
        }
      }
    });
    pool_.barrier();
  }

  // values[64 * m..] = the neurons 32 * u.. of the active rows `begin..begin + n`.
  void compute_unit(int index, const ProjectionInputs& inputs, const ActiveRows& active, int begin,
                    int n, int64_t u, float* values) {
    const TrimMatrix& gate_up = model_.layer[index].gate_up;
    const int halves = 32 * u + 16 < model_.ffn ? 2 : 1;  // of 16 gates and their 16 ups
    Tile tile;
    for (int m = 0; m < n; ++m) {
      tile.set_input(m, inputs.normed, active.row.get()[begin + m]);
      set_to_bias(gate_up, 4 * u, 2 * halves, tile.out[m] = values + 64 * m);
    }
    tile.multiply_add(n, gate_up, 4 * u, 2 * halves, blocks_together(active.count), 0,
                      (int)PackedLayout::input_blocks(gate_up));
    for (int block = 0; block < 2 * halves; ++block)
      add_input_correction(active, begin, begin + n, inputs, 4 * u + block,
                           [&](int64_t i) { return values + 64 * (i - begin) + 16 * block; });
    for (int m = 0; m < n; ++m)
      for (int i = 0; i < 16 * halves; i += 8) {
        const float* gate = values + 64 * m + i + i / 16 * 16;
        store8(values + 64 * m + i, activate(load8(gate)) * load8(gate + 16));
      }
  }
};
