// One step of the decoder. Included once for each instruction set, inside its namespace.

class Step : public Attention {
 public:
  Step(const TrimModel& model, const TrimCache& cache, const TrimBatch& batch, Buffers& buffers,
       Pool& pool)
      : Attention(model, cache, batch, buffers, pool) {
    b_.neurons.fit(batch.rows, model.ffn);
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
  void embed(int64_t row) {
    const TrimMatrix& m = model_.embed;
    float* x = b_.x.get() + row * hidden_;
    const int64_t token = batch_.tokens[row], lane = token % 16;
    if (token < 0 || token >= m.outputs) {
      for (int i = 0; i < model_.hidden; ++i) x[i] = NAN;
      return;
    }
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

  v8f activate(v8f x) const {
    if (model_.activation == TRIM_SILU) return x / (1.0f + Isa::exp(-x));
    if (model_.activation == TRIM_GELU_TANH) {
      const v8f e = Isa::exp(1.5957691216f * (x + 0.044715f * x * x * x));
      return x - x / (e + 1.0f);  // half of x times 1 and a tangent
    }
    v8f y;
    for (int i = 0; i < 8; ++i) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.7071067812f));
    return y;
  }

  void mlp(int index, Local& local) {
    const TrimLayer& layer = model_.layer[index];
    Members& who = local.members;
    members(index, kMlp, who, last(index));
    if (who.count) {
      neurons(index, who, normed(index, kMlp, who, layer.mlp_norm, local), local);
    }
    join_residual(index, kMlp, layer.down, b_.neurons, layer.mlp_out_norm, local);
  }

  // Activations of 32 neurons at a time, quantised as soon as they are there.
  void neurons(int index, const Members& who, const Inputs& inputs, Local& local) {
    float* room = local.line.fit(64 * kRows);
    const int64_t units = up(who.width.get()[0], 32) / 32;
    pool_.share(units, pool_.grain(units), [&](int64_t from, int64_t to) {
      for (int64_t u = from; u < to; ++u) {
        const int reach = who.reach(32 * u);
        for (int begin = 0; begin < who.count; begin += kRows) {
          const int n = least(who.count - begin, kRows);
          const int here = least(reach - begin, n);
          if (here > 0) gates(index, inputs, who, begin, here, u, room);
          for (int m = 0; m < n; ++m) {
            const int64_t r = who.row.get()[begin + m];
            if (m >= here) {
              nothing(b_.neurons, r, u);
              continue;
            }
            const int64_t left = who.width.get()[begin + m] - 32 * u;
            quantise(room + 64 * m, left < 32 ? left : 32, b_.neurons, r, u);
          }
        }
      }
    });
    pool_.barrier();
  }

  // room[64 m ..]: the activations of neurons 32u.. of `n` rows from `begin` on.
  void gates(int index, const Inputs& inputs, const Members& who, int begin, int n, int64_t u,
             float* room) {
    const TrimMatrix& gate_up = model_.layer[index].gate_up;
    const int halves = 32 * u + 16 < model_.ffn ? 2 : 1;  // of 16 gates and their 16 ups
    Tile tile;
    for (int m = 0; m < n; ++m) {
      tile.input(m, inputs.normed, who.row.get()[begin + m]);
      start(gate_up, 4 * u, 2 * halves, tile.out[m] = room + 64 * m);
    }
    tile.product(n, gate_up, 4 * u, 2 * halves, beside(who.count), 0,
                 (int)Packed::input_blocks(gate_up));
    for (int block = 0; block < 2 * halves; ++block)
      enter(who, begin, begin + n, inputs, 4 * u + block,
            [&](int64_t i) { return room + 64 * (i - begin) + 16 * block; });
    for (int m = 0; m < n; ++m)
      for (int i = 0; i < 16 * halves; i += 8) {
        const float* gate = room + 64 * m + i + i / 16 * 16;
        store8(room + 64 * m + i, activate(load8(gate)) * load8(gate + 16));
      }
  }
};
