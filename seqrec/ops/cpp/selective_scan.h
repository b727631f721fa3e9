// Selective scan. Letters as in problems.h; part of kernels.cpp.
//
// Threads run over batch rows and blocks of LANES channels, and each walks along the events. Nothing of size
// (B, L, D, N) is kept: forward writes the state before every S-th event, and backward recomputes the states of S
// events from it. At padding nothing is read and the state passes; at a start the state becomes zero by assignment,
// because a product with 0 would let NaN through. T is the type of u, delta, z, B, C, y and of gradients of those that
// have channels: float or BFloat16.

constexpr int64_t PADDING = 16;  // D of kept_states is rounded up to this for any LANES

struct Step {
  Vec size, slope;  // the step size and its derivative with respect to delta
};

inline Step step_of(Vec delta, int64_t softplus) {
  if (!softplus) return {delta, all(1.f)};
  const Vec y = exp(delta > Vec{} ? -delta : delta);
  const Vec inverse = all(1.f) / (all(1.f) + y);
  const Vec positive = delta < Vec{} ? Vec{} : delta;
  return {positive + log1p(y), delta > Vec{} ? inverse : y * inverse};
}

// to[n] = or += the sum over lanes of products[n]; products is overwritten and padded to whole blocks of LANES.
inline void add_sums(float* to, Vec* products, int64_t N, int lanes, bool add) {
  if (lanes < LANES) {
    // A lane without a channel holds zero times B or C, which is NaN if those are infinite.
    Bits used{};
    for (int i = 0; i < lanes; ++i) used[i] = -1;
    for (int64_t n = 0; n < N; ++n) products[n] = used ? products[n] : Vec{};
  }
  for (int64_t n = 0; n < N; n += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, N - n));
    for (int i = count; i < LANES; ++i) products[n + i] = Vec{};
    const Vec sums = sums_of(products + n);
    store(to + n, add ? load(to + n, count) + sums : sums, count);
  }
}

constexpr float LOG2_E = 1.44269504f;

// h' = 2^(step * A2) h + step_u B for all N states, A2 = A log2(e); returns C h'.
template <bool KEEP_DECAY>
inline Vec advance(Vec* next, const Vec* h, Vec* decay, const Vec* A2, Vec step, Vec step_u, const float* B,
                   const float* C, int64_t N) {
  Vec y{};
  for (int64_t n = 0; n < N; ++n) {
    const Vec a = exp2(step * A2[n]), h_n = a * h[n] + step_u * all(B[n]);
    next[n] = h_n;
    y += h_n * all(C[n]);
    if (KEEP_DECAY) decay[n] = a;
  }
  return y;
}

inline float* kept_at(const ScanProblem& p, const Block& k, int64_t chunk, int64_t n) {
  const int64_t chunks = (p.length + p.interval - 1) / p.interval;
  const int64_t width = (p.channels + PADDING - 1) / PADDING * PADDING;
  return p.kept_states + ((k.row * chunks + chunk) * p.states + n) * width + k.channel;
}

// Vectors of one event's B or C.
inline int64_t weight_vectors(const ScanProblem& p) { return (p.states + LANES - 1) / LANES; }

// B or C of a chunk, as floats, with the distance between events.
struct Weights {
  const float* at;
  int64_t event;
};

inline Weights weights_of(const ScanProblem& p, const float* from, int64_t, Vec*) { return {from, p.weights_event}; }

inline Weights weights_of(const ScanProblem& p, const BFloat16* from, int64_t count, Vec* room) {
  const int64_t vectors = weight_vectors(p);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t i = 0; i < vectors; ++i) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.states - i * LANES));
      room[t * vectors + i] = load(from + t * p.weights_event + i * LANES, lanes);
    }
  return {floats(room), vectors * LANES};
}

int64_t scan_forward_scratch(const ScanProblem& p) {
  return 2 * p.states + 3 * p.interval + 2 * p.interval * weight_vectors(p);
}

// The events of a chunk are read before any state is computed and written after all: their exponentials wait for each
// other then, not the states for them.
template <typename T>
void scan_forward_task(const ScanProblem& p, int64_t task, Vec* scratch) {
  const Block k = block_at(p, task / blocks_of(p), task % blocks_of(p));
  const int64_t N = p.states, S = p.interval, state_offset = (k.row * p.channels + k.channel) * N;
  Vec *h = scratch, *A2 = h + N, *steps = A2 + N, *u = steps + S, *y = u + S, *room = y + S;
  load_rows(A2, p.A + k.channel * N, N, k.lanes);
  for (int64_t n = 0; n < N; ++n) A2[n] *= all(LOG2_E);
  load_rows(h, p.initial_state ? p.initial_state + state_offset : nullptr, N, k.lanes);
  const Vec bias = load_or_zero(p.delta_bias, k.channel, k.lanes), D = load_or_zero(p.D, k.channel, k.lanes);
  for (int64_t begin = 0; begin < p.length; begin += S) {
    const int64_t count = std::min(S, p.length - begin), first = k.row * p.length + begin;
    if (p.kept_states)
      for (int64_t n = 0; n < N; ++n) store(kept_at(p, k, begin / S, n), h[n]);
    const Weights B = weights_of(p, as<T>(p.B) + first * p.weights_event, count, room);
    const Weights C = weights_of(p, as<T>(p.C) + first * p.weights_event, count, room + S * weight_vectors(p));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = (first + t) * p.channels + k.channel;
      if (is_padding(p, first + t)) continue;
      steps[t] = step_of(load(as<T>(p.delta) + at, k.lanes) + bias, p.softplus).size;
      u[t] = load(as<T>(p.u) + at, k.lanes);
    }
    for (int64_t t = 0; t < count; ++t) {
      const int64_t event = first + t;
      if (is_start(p, event)) clear(h, N);
      if (!is_padding(p, event))
        y[t] = advance<false>(h, h, nullptr, A2, steps[t], steps[t] * u[t], B.at + t * B.event, C.at + t * C.event, N);
    }
    for (int64_t t = 0; t < count; ++t) {
      const int64_t event = first + t;
      Vec out = is_padding(p, event) ? Vec{} : p.D ? y[t] + D * u[t] : y[t];
      if (p.z && !is_padding(p, event)) {
        const Vec z = load(as<T>(p.z) + event * p.z_event + k.channel, k.lanes);
        out *= z / (all(1.f) + exp(-z));
      }
      store(as<T>(p.y) + event * p.channels + k.channel, out, k.lanes);
    }
  }
  if (p.last_state) store_rows(p.last_state + state_offset, h, N, k.lanes);
}

// Working memory of one backward thread, in vectors: S events of one block. What is read together lies at distances that
// are constant if N is.
struct Rebuilt {
  Vec *A, *A2, *dh, *dA, *dB, *dC;
  Vec* zeros;  // the state before a start
  Vec* h;      // (S + 1, 2, N): the state before each event, and the event's decay
  Vec *step, *slope, *u, *y, *dy;
  Vec *B, *C;  // room for those of the chunk as floats
};

int64_t scan_backward_scratch(const ScanProblem& p) {
  return (2 * p.interval + 2) * p.states + 5 * p.interval + 7 * p.states + 2 * LANES +
         2 * p.interval * weight_vectors(p);
}

inline Rebuilt rebuilt_in(Vec* scratch, int64_t N, int64_t S, int64_t weight_vectors) {
  Rebuilt r;
  r.A = scratch, r.A2 = r.A + N, r.dh = r.A2 + N, r.dA = r.dh + N, r.zeros = r.dA + N;
  r.dB = r.zeros + N, r.dC = r.dB + N + LANES, r.h = r.dC + N + LANES;
  r.step = r.h + (S + 1) * 2 * N, r.slope = r.step + S, r.u = r.slope + S, r.y = r.u + S, r.dy = r.y + S;
  r.B = r.dy + S, r.C = r.B + S * weight_vectors;
  return r;
}

// Recompute the states of `count` events from the kept one, and compute dy before the gate. HAS_FLAGS, here and below,
// is true if `valid` or `start` is given. If not, all of this is inlined, which saves a sixth of the time. STATES is N, or
// 0 if N is known only at run time.
template <bool HAS_FLAGS, int STATES, typename T>
void rebuild(const ScanProblem& p, const Block& k, int64_t chunk, int64_t count, Vec bias, Vec D, Weights B, Weights C,
             const Rebuilt& r) {
  const int64_t N = STATES ? STATES : p.states, first = k.row * p.length + chunk * p.interval;
  for (int64_t n = 0; n < N; ++n) r.h[n] = load(kept_at(p, k, chunk, n));
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = (first + t) * p.channels + k.channel;
    if (HAS_FLAGS && is_padding(p, first + t)) continue;
    const Step step = step_of(load(as<T>(p.delta) + at, k.lanes) + bias, p.softplus);
    r.step[t] = step.size;
    r.slope[t] = step.slope;
    r.u[t] = load(as<T>(p.u) + at, k.lanes);
    r.dy[t] = load_or_zero(as<T>(p.dy), at, k.lanes);
  }
  for (int64_t t = 0; t < count; ++t) {
    const int64_t event = first + t;
    Vec* h = r.h + t * 2 * N;
    const Vec* before = HAS_FLAGS && is_start(p, event) ? r.zeros : h;
    if (HAS_FLAGS && is_padding(p, event))
      copy(h + 2 * N, before, N);
    else
      r.y[t] = advance<true>(h + 2 * N, before, h + N, r.A2, r.step[t], r.step[t] * r.u[t], B.at + t * B.event,
                             C.at + t * C.event, N);
  }
  for (int64_t t = 0; p.z && t < count; ++t) {
    const int64_t event = first + t;
    T* dz = as<T>(p.dz) + event * p.dz_event + k.channel;
    if (HAS_FLAGS && is_padding(p, event)) {
      store(dz, Vec{}, k.lanes);
      continue;
    }
    const Vec z = load(as<T>(p.z) + event * p.z_event + k.channel, k.lanes), open = sigmoid(z);
    const Vec y = p.D ? r.y[t] + D * r.u[t] : r.y[t];
    store(dz, r.dy[t] * y * open * (all(1.f) + z * (all(1.f) - open)), k.lanes);
    r.dy[t] *= z * open;
  }
}

template <bool HAS_FLAGS, int STATES, typename T>
void scan_backward_block(const ScanProblem& p, const Block& k, float* dB, float* dC, bool add, const Rebuilt& r) {
  const int64_t N = STATES ? STATES : p.states, S = p.interval;
  const int64_t state_offset = (k.row * p.channels + k.channel) * N;
  load_rows(r.A, p.A + k.channel * N, N, k.lanes);
  load_rows(r.dh, p.dlast_state ? p.dlast_state + state_offset : nullptr, N, k.lanes);
  for (int64_t n = 0; n < N; ++n) {
    r.A2[n] = r.A[n] * all(LOG2_E);
    r.dA[n] = r.zeros[n] = Vec{};
  }
  const Vec bias = load_or_zero(p.delta_bias, k.channel, k.lanes), D = load_or_zero(p.D, k.channel, k.lanes);
  Vec dD{}, dbias{};
  for (int64_t chunk = (p.length + S - 1) / S - 1; chunk >= 0; --chunk) {
    const int64_t count = std::min(S, p.length - chunk * S);
    const int64_t weights = (k.row * p.length + chunk * S) * p.weights_event;
    const Weights B = weights_of(p, as<T>(p.B) + weights, count, r.B);
    const Weights C = weights_of(p, as<T>(p.C) + weights, count, r.C);
    rebuild<HAS_FLAGS, STATES, T>(p, k, chunk, count, bias, D, B, C, r);
    for (int64_t t = count - 1; t >= 0; --t) {
      const int64_t event = k.row * p.length + chunk * S + t, at = event * p.channels + k.channel;
      if (HAS_FLAGS && is_padding(p, event)) {
        store(as<T>(p.du) + at, Vec{}, k.lanes);
        store(as<T>(p.ddelta) + at, Vec{}, k.lanes);
        for (int64_t n = 0; n < N && !add; ++n) dB[event * p.dweights_event + n] = dC[event * p.dweights_event + n] = 0.f;
        if (is_start(p, event)) clear(r.dh, N);
        continue;
      }
      const float *B_t = B.at + t * B.event, *C_t = C.at + t * C.event;
      const Vec dy = r.dy[t], step = r.step[t], u = r.u[t], step_u = step * u;
      const Vec *h = r.h + t * 2 * N, *decay = h + N, *after = h + 2 * N;
      const Vec* before = HAS_FLAGS && is_start(p, event) ? r.zeros : h;
      Vec dstep_u{}, dstep{};
      for (int64_t n = 0; n < N; ++n) {
        const Vec dh = r.dh[n] + dy * all(C_t[n]);
        r.dC[n] = dy * after[n];
        r.dB[n] = dh * step_u;
        dstep_u += dh * all(B_t[n]);
        const Vec dbefore = dh * decay[n], dexponent = dbefore * before[n];
        dstep += dexponent * r.A[n];
        r.dA[n] += dexponent * step;
        r.dh[n] = dbefore;
      }
      add_sums(dB + event * p.dweights_event, r.dB, N, k.lanes, add);
      add_sums(dC + event * p.dweights_event, r.dC, N, k.lanes, add);
      const Vec ddelta = (dstep + dstep_u * u) * r.slope[t];
      store(as<T>(p.du) + at, dstep_u * step + D * dy, k.lanes);
      store(as<T>(p.ddelta) + at, ddelta, k.lanes);
      dbias += ddelta;
      dD += dy * u;
      if (HAS_FLAGS && is_start(p, event)) clear(r.dh, N);
    }
  }
  store_rows(p.dA + state_offset, r.dA, N, k.lanes);
  if (p.dinitial_state) store_rows(p.dinitial_state + state_offset, r.dh, N, k.lanes);
  if (p.dD) store(p.dD + k.row * p.channels + k.channel, dD, k.lanes);
  if (p.ddelta_bias) store(p.ddelta_bias + k.row * p.channels + k.channel, dbias, k.lanes);
}

template <bool HAS_FLAGS, int STATES, typename T>
void scan_backward_task(const ScanProblem& p, int64_t task, Vec* scratch) {
  const int64_t row = task / p.groups, group = task % p.groups, blocks = blocks_of(p);
  const int64_t slice = group * p.batch * p.length * p.dweights_event, first = group * blocks / p.groups;
  const Rebuilt r = rebuilt_in(scratch, STATES ? STATES : p.states, p.interval, weight_vectors(p));
  for (int64_t block = first; block < (group + 1) * blocks / p.groups; ++block)
    scan_backward_block<HAS_FLAGS, STATES, T>(p, block_at(p, row, block), p.dB + slice, p.dC + slice, block > first, r);
}

template <typename T>
auto scan_backward_of(const ScanProblem& p) {
  return p.valid || p.start ? scan_backward_task<true, 0, T>
         : p.states == 32   ? scan_backward_task<false, 32, T>
         : p.states == 16   ? scan_backward_task<false, 16, T>
                            : scan_backward_task<false, 0, T>;
}
