// One further event of a mixer of Mamba or Mamba-2, from its input to its output. Letters as in problems.h; part of
// kernels.cpp.
//
// Threads run over pieces of the batch. All of an event's numbers stay in the cache, and nothing is allocated per event.

// out[o] = sum over i of weight[o, i] x[i], for LANES rows of the weight at a time.
void product(float* out, const float* weight, int64_t rows, int64_t columns, const float* x) {
  const int64_t whole = columns / LANES * LANES;
  const int rest = static_cast<int>(columns - whole);
  for (int64_t o = 0; o < rows; o += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, rows - o));
    Vec sums[LANES]{};
    const float* row = weight + o * columns;
    for (int64_t i = 0; i < whole; i += LANES) {
      const Vec v = load(x + i);
      for (int k = 0; k < count; ++k) sums[k] += load(row + k * columns + i) * v;
    }
    if (rest) {
      const Vec v = load(x + whole, rest);
      for (int k = 0; k < count; ++k) sums[k] += load(row + k * columns + whole, rest) * v;
    }
    store(out + o, sums_of(sums), count);
  }
}

inline int64_t whole_vectors(int64_t floats) { return (floats + LANES - 1) / LANES; }

int64_t mamba_step_scratch(const MambaStepProblem& p) {
  return whole_vectors(p.channels * p.states) + whole_vectors(2 * p.channels) + 3 * whole_vectors(p.channels) +
         whole_vectors(p.rank + 2 * p.states);
}

// The events that one thread takes at a time.
template <typename Problem>
inline int64_t piece_of(const Problem& p) { return std::max<int64_t>(1, (p.batch + p.threads - 1) / p.threads); }

template <typename Problem>
inline int64_t pieces_of(const Problem& p) { return (p.batch + piece_of(p) - 1) / piece_of(p); }

int64_t mamba_step_work(const MambaStepProblem& p) {
  return p.batch * (2 * p.channels * p.states + p.channels * (3 * p.width + p.rank) / 8);
}

// The convolution of E channels with SiLU over a row's kept inputs and the new one, which are then kept without the
// oldest.
template <typename Problem>
void step_convolution(const Problem& p, int64_t row, int64_t E, const float* path, float* u) {
  const int64_t W = p.taps;
  const float* kept = p.inputs + (p.rows ? p.rows[row] : row) * p.inputs_stride;
  float* keep = p.next_inputs + (p.rows ? p.next_rows[row] : row) * p.inputs_stride;
  for (int64_t e = 0; e < E; ++e) {
    float sum = path[e] * p.conv_weight[e * W + W - 1];
    for (int64_t j = 0; j < W - 1; ++j) sum += kept[j * E + e] * p.conv_weight[e * W + j];
    u[e] = sum + p.conv_bias[e];
  }
  if (W > 1) {
    std::memcpy(keep, kept + E, sizeof(float) * (W - 2) * E);
    std::memcpy(keep + (W - 2) * E, path, sizeof(float) * E);
  }
  for (int64_t e = 0; e < E; e += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, E - e));
    const Vec v = load(u + e, count);
    store(u + e, v / (all(1.f) + exp(-v)), count);
  }
}

void mamba_step_event(const MambaStepProblem& p, int64_t row, const float* A2, float* path_and_gate, float* u,
                      float* delta, float* y, float* projected) {
  const int64_t E = p.channels, N = p.states;
  const float *path = path_and_gate, *gate = path_and_gate + E;
  product(path_and_gate, p.in_weight, 2 * E, p.width, p.x + row * p.width);
  step_convolution(p, row, E, path, u);
  product(projected, p.scan_weight, p.rank + 2 * N, E, u);
  for (int64_t e = 0; e < E; ++e) {
    float sum = p.delta_bias[e];
    for (int64_t r = 0; r < p.rank; ++r) sum += p.delta_weight[e * p.rank + r] * projected[r];
    delta[e] = sum;
  }
  const float *B = projected + p.rank, *C = B + N;
  const float* state = p.state + (p.rows ? p.rows[row] : row) * p.state_stride;
  float* next_state = p.next_state + (p.rows ? p.next_rows[row] : row) * p.state_stride;
  for (int64_t e = 0; e < E; e += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, E - e));
    const Vec step = step_of(load(delta + e, count), 1).size, in = load(u + e, count), step_u = step * in;
    Vec sums[LANES]{};
    for (int k = 0; k < count; ++k) {
      const int64_t at = (e + k) * N;
      const float *h_before = state + at, *exponent = A2 + at;
      float* h_after = next_state + at;
      for (int64_t n = 0; n < N; n += LANES) {
        const int some = static_cast<int>(std::min<int64_t>(LANES, N - n));
        const Vec h = exp2(all(step[k]) * load(exponent + n, some)) * load(h_before + n, some) +
                      all(step_u[k]) * load(B + n, some);
        store(h_after + n, h, some);
        sums[k] += h * load(C + n, some);
      }
    }
    const Vec z = load(gate + e, count);
    store(y + e, (sums_of(sums) + load(p.D + e, count) * in) * (z / (all(1.f) + exp(-z))), count);
  }
  product(p.out + row * p.width, p.out_weight, p.width, E, y);
}

void mamba_step_task(const MambaStepProblem& p, int64_t task, Vec* scratch) {
  const int64_t E = p.channels, N = p.states, line = whole_vectors(E);
  float* A2 = reinterpret_cast<float*>(scratch);
  for (int64_t i = 0; i < E * N; i += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, E * N - i));
    store(A2 + i, exp(load(p.A_log + i, count)) * all(-LOG2_E), count);
  }
  Vec* next = scratch + whole_vectors(E * N);
  float* path_and_gate = reinterpret_cast<float*>(next);
  float* u = reinterpret_cast<float*>(next += whole_vectors(2 * E));
  float* delta = reinterpret_cast<float*>(next += line);
  float* y = reinterpret_cast<float*>(next += line);
  float* projected = reinterpret_cast<float*>(next += line);
  const int64_t begin = task * piece_of(p), end = std::min(p.batch, begin + piece_of(p));
  for (int64_t row = begin; row < end; ++row) mamba_step_event(p, row, A2, path_and_gate, u, delta, y, projected);
}

inline int64_t inner_of(const Mamba2StepProblem& p) { return p.heads * p.head_width; }

int64_t mamba2_step_scratch(const Mamba2StepProblem& p) {
  const int64_t E = inner_of(p), convolved = E + 2 * p.states;
  return whole_vectors(E + convolved + p.heads) + whole_vectors(convolved) + whole_vectors(E) +
         2 * whole_vectors(p.heads);
}

int64_t mamba2_step_work(const Mamba2StepProblem& p) {
  const int64_t E = inner_of(p);
  return p.batch * (E * p.states + (3 * E + 2 * p.states) * p.width / 8);
}

void mamba2_step_event(const Mamba2StepProblem& p, int64_t row, float* projected, float* u, float* gated, float* steps,
                       float* decays) {
  const int64_t E = inner_of(p), H = p.heads, P = p.head_width, N = p.states;
  const float *gate = projected, *path = gate + E, *delta = path + E + 2 * N;
  product(projected, p.in_weight, 2 * E + 2 * N + H, p.width, p.x + row * p.width);
  step_convolution(p, row, E + 2 * N, path, u);
  const float *B = u + E, *C = B + N;
  for (int64_t h = 0; h < H; h += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, H - h));
    const Vec step = step_of(load(delta + h, count) + load(p.delta_bias + h, count), 1).size;
    store(steps + h, step, count);
    store(decays + h, exp2(exp(load(p.A_log + h, count)) * all(-LOG2_E) * step), count);
  }
  const float* state = p.state + (p.rows ? p.rows[row] : row) * p.state_stride;
  float* next_state = p.next_state + (p.rows ? p.next_rows[row] : row) * p.state_stride;
  Vec squares{};
  for (int64_t h = 0; h < H; ++h)
    for (int64_t i = 0; i < P; i += LANES) {
      const int64_t e = h * P + i;
      const int count = static_cast<int>(std::min<int64_t>(LANES, P - i));
      const Vec in = load(u + e, count), step_u = all(steps[h]) * in, decay = all(decays[h]);
      Vec sums[LANES]{};
      for (int k = 0; k < count; ++k)
        for (int64_t n = 0; n < N; n += LANES) {
          const int some = static_cast<int>(std::min<int64_t>(LANES, N - n));
          const int64_t at = (e + k) * N + n;
          const Vec after = decay * load(state + at, some) + all(step_u[k]) * load(B + n, some);
          store(next_state + at, after, some);
          sums[k] += after * load(C + n, some);
        }
      const Vec z = load(gate + e, count);
      const Vec g = (sums_of(sums) + all(p.D[h]) * in) * (z / (all(1.f) + exp(-z)));
      store(gated + e, g, count);
      squares += g * g;
    }
  const Vec scale = all(inverse_root(squares, E));
  for (int64_t e = 0; e < E; e += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, E - e));
    store(gated + e, load(gated + e, count) * scale * load(p.norm_weight + e, count), count);
  }
  product(p.out + row * p.width, p.out_weight, p.width, E, gated);
}

void mamba2_step_task(const Mamba2StepProblem& p, int64_t task, Vec* scratch) {
  const int64_t E = inner_of(p), convolved = E + 2 * p.states;
  float* projected = floats(scratch);
  float* u = floats(scratch += whole_vectors(E + convolved + p.heads));
  float* gated = floats(scratch += whole_vectors(convolved));
  float* steps = floats(scratch += whole_vectors(E));
  float* decays = floats(scratch += whole_vectors(p.heads));
  const int64_t begin = task * piece_of(p), end = std::min(p.batch, begin + piece_of(p));
  for (int64_t row = begin; row < end; ++row) mamba2_step_event(p, row, projected, u, gated, steps, decays);
}
