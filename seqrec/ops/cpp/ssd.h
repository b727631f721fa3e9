// State-space-dual scan (Mamba-2). Letters as in problems.h; part of kernels.cpp.
//
// The state of a head is a matrix of P x N numbers, kept as N vectors for each block of LANES of its P rows. A few
// events are taken at once, so a state is loaded and stored once for all of them. Nothing of size (B, L, H, P, N) is
// kept: forward writes the state before every S-th event, and backward recomputes the states of S events from it.

constexpr int AT_ONCE = 4;

struct Head {
  int64_t row, head, group, blocks;
};

inline Head head_at(const SsdProblem& p, int64_t row, int64_t head) {
  return {row, head, head / (p.heads / p.groups), (p.width + LANES - 1) / LANES};
}

inline int lanes_of(const SsdProblem& p, int64_t block) {
  return static_cast<int>(std::min<int64_t>(LANES, p.width - block * LANES));
}

inline int64_t x_at(const SsdProblem& p, const Head& k, int64_t event) { return (event * p.heads + k.head) * p.width; }

inline int64_t weights_at(const SsdProblem& p, const Head& k, int64_t event) {
  return (event * p.groups + k.group) * p.states;
}

inline int64_t state_at(const SsdProblem& p, const Head& k, int64_t block) {
  return ((k.row * p.heads + k.head) * p.width + block * LANES) * p.states;
}

// decays[t] of all events of a head.
inline void ssd_decays(const SsdProblem& p, const Head& k, float* decays) {
  const float* step = p.step + k.row * p.length * p.heads + k.head;
  for (int64_t t = 0; t < p.length; t += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, p.length - t));
    Vec exponent{};
    for (int i = 0; i < count; ++i) exponent[i] = step[(t + i) * p.heads] * p.A[k.head];
    store(decays + t, exp(exponent));
  }
}

inline void ssd_load_state(const SsdProblem& p, const Head& k, Vec* h, const float* from) {
  for (int64_t block = 0; block < k.blocks; ++block)
    load_rows(h + block * p.states, from ? from + state_at(p, k, block) : nullptr, p.states, lanes_of(p, block));
}

inline void ssd_store_state(const SsdProblem& p, const Head& k, const Vec* h, float* to) {
  for (int64_t block = 0; block < k.blocks; ++block)
    store_rows(to + state_at(p, k, block), h + block * p.states, p.states, lanes_of(p, block));
}

// Zero in the lanes that have no row, where a product of 0 with an infinite weight would be NaN.
inline Vec masked(Vec v, Vec used) { return used != Vec{} ? v : Vec{}; }

inline Vec used_lanes(int lanes) {
  Vec used{};
  for (int i = 0; i < lanes; ++i) used[i] = 1.f;
  return used;
}

// Outputs and states of T events.
template <int T>
inline void ssd_outputs(const SsdProblem& p, const Head& k, int64_t event, const float* decays, Vec* h) {
  const int64_t N = p.states;
  Vec a[T];
  const float *B[T], *C[T];
  for (int i = 0; i < T; ++i) {
    a[i] = all(decays[i]);
    B[i] = p.B + weights_at(p, k, event + i);
    C[i] = p.C + weights_at(p, k, event + i);
  }
  for (int64_t block = 0; block < k.blocks; ++block) {
    const int lanes = lanes_of(p, block);
    Vec u[T], y[T], *state = h + block * N;
    for (int i = 0; i < T; ++i) {
      u[i] = load(p.x + x_at(p, k, event + i) + block * LANES, lanes) * all(p.step[(event + i) * p.heads + k.head]);
      y[i] = Vec{};
    }
    for (int64_t n = 0; n < N; ++n) {
      Vec v = state[n];
      for (int i = 0; i < T; ++i) {
        v = a[i] * v + all(B[i][n]) * u[i];
        y[i] += all(C[i][n]) * v;
      }
      state[n] = v;
    }
    for (int i = 0; i < T; ++i) store(p.y + x_at(p, k, event + i) + block * LANES, y[i], lanes);
  }
}

inline int64_t ssd_blocks(const SsdProblem& p) { return (p.width + LANES - 1) / LANES; }

inline float* ssd_kept_at(const SsdProblem& p, const Head& k, int64_t chunk) {
  const int64_t chunks = (p.length + p.interval - 1) / p.interval;
  const int64_t rows = (p.width + PADDING - 1) / PADDING * PADDING;
  return p.kept_states + ((k.row * p.heads + k.head) * chunks + chunk) * rows * p.states;
}

// The end of a group of at most AT_ONCE events from t on, before the next start and the next kept state.
inline int64_t ssd_group_end(const SsdProblem& p, int64_t first, int64_t t) {
  const int64_t most = std::min({p.length, t + AT_ONCE, (t / p.interval + 1) * p.interval});
  int64_t end = t + 1;
  while (end < most && !is_start(p, first + end)) ++end;
  return end;
}

int64_t ssd_forward_scratch(const SsdProblem& p) { return ssd_blocks(p) * p.states + p.length / LANES + 2; }

void ssd_forward_task(const SsdProblem& p, int64_t task, Vec* scratch) {
  const Head k = head_at(p, task / p.heads, task % p.heads);
  const int64_t first = k.row * p.length, size = k.blocks * p.states;
  Vec* h = scratch;
  float* decays = reinterpret_cast<float*>(h + size);
  ssd_decays(p, k, decays);
  ssd_load_state(p, k, h, p.initial_state);
  for (int64_t t = 0, end; t < p.length; t = end) {
    if (p.kept_states && t % p.interval == 0)
      std::memcpy(ssd_kept_at(p, k, t / p.interval), h, static_cast<std::size_t>(size) * sizeof(Vec));
    if (is_start(p, first + t)) clear(h, size);
    end = ssd_group_end(p, first, t);
    if (end - t == AT_ONCE) {
      ssd_outputs<AT_ONCE>(p, k, first + t, decays + t, h);
    } else {
      for (int64_t one = t; one < end; ++one) ssd_outputs<1>(p, k, first + one, decays + one, h);
    }
  }
  ssd_store_state(p, k, h, p.last_state);
}

// Working memory of one backward thread.
struct SsdScratch {
  Vec *h, *dh, *before, *sums;  // (blocks, N), the same, states before S events, (AT_ONCE, N + LANES)
  float* decays;                // (L + 1)
};

int64_t ssd_backward_scratch(const SsdProblem& p) {
  return (2 + p.interval) * ssd_blocks(p) * p.states + AT_ONCE * (p.states + LANES) + p.length / LANES + 2;
}

inline SsdScratch ssd_scratch_in(const SsdProblem& p, Vec* scratch) {
  const int64_t state = ssd_blocks(p) * p.states;
  Vec* sums = scratch + (2 + p.interval) * state;
  return {scratch, scratch + state, scratch + 2 * state, sums,
          reinterpret_cast<float*>(sums + AT_ONCE * (p.states + LANES))};
}

// States of T events of one block again, and their terms of dC; `before` is where that before the first event goes.
template <int T, bool PARTIAL>
inline void ssd_again(const SsdProblem& p, const Head& k, int64_t block, int64_t event, const float* decays, Vec* before,
                      const SsdScratch& r) {
  const int64_t N = p.states, padded = N + LANES, size = k.blocks * N;
  const int lanes = PARTIAL ? lanes_of(p, block) : LANES;
  const Vec used = used_lanes(lanes);
  Vec a[T], u[T], dy[T], *state = r.h + block * N;
  const float* B[T];
  before += block * N;
  for (int i = 0; i < T; ++i) {
    const int64_t at = x_at(p, k, event + i) + block * LANES;
    a[i] = all(decays[i]);
    B[i] = p.B + weights_at(p, k, event + i);
    u[i] = load(p.x + at, lanes) * all(p.step[(event + i) * p.heads + k.head]);
    dy[i] = load(p.dy + at, lanes);
  }
  for (int64_t n = 0; n < N; ++n) {
    Vec v = state[n];
    for (int i = 0; i < T; ++i) {
      before[i * size + n] = v;
      v = a[i] * v + all(B[i][n]) * u[i];
      const Vec term = PARTIAL ? masked(v * dy[i], used) : v * dy[i];
      r.sums[i * padded + n] = block ? r.sums[i * padded + n] + term : term;
    }
    state[n] = v;
  }
}

// Add the sums over lanes of the terms of T events to the gradients of their weights.
template <int T>
inline void ssd_add_sums(const SsdProblem& p, const Head& k, int64_t event, float* to, const SsdScratch& r) {
  for (int i = 0; i < T; ++i)
    add_sums(to + weights_at(p, k, event + i), r.sums + i * (p.states + LANES), p.states, LANES);
}

template <int T>
inline void ssd_states(const SsdProblem& p, const Head& k, int64_t event, const float* decays, float* dC, Vec* before,
                       const SsdScratch& r) {
  const int64_t whole = p.width / LANES;
  for (int64_t block = 0; block < whole; ++block) ssd_again<T, false>(p, k, block, event, decays, before, r);
  if (whole < k.blocks) ssd_again<T, true>(p, k, whole, event, decays, before, r);
  ssd_add_sums<T>(p, k, event, dC, r);
}

// Sums over the state of a head, of T events: of x . du, and of the state before the event times the gradient of that
// after it.
template <int T>
struct SsdProducts {
  Vec x_du[T], h_dh[T];
};

// Gradients of T events of one block, from the last to the first. `later[i]` is the decay of the event after event i.
template <int T, bool PARTIAL>
inline void ssd_gradients_of(const SsdProblem& p, const Head& k, int64_t block, int64_t event, const float* later,
                             const Vec* before, const SsdScratch& r, SsdProducts<T>& products) {
  const int64_t N = p.states, padded = N + LANES, size = k.blocks * N;
  const int lanes = PARTIAL ? lanes_of(p, block) : LANES;
  const Vec used = used_lanes(lanes);
  Vec a[T], u[T], dy[T], du[T], h_dh[T], *state = r.dh + block * N;
  const float *B[T], *C[T];
  before += block * N;
  for (int i = 0; i < T; ++i) {
    const int64_t at = x_at(p, k, event + i) + block * LANES;
    a[i] = all(later[i]);
    B[i] = p.B + weights_at(p, k, event + i);
    C[i] = p.C + weights_at(p, k, event + i);
    u[i] = load(p.x + at, lanes) * all(p.step[(event + i) * p.heads + k.head]);
    dy[i] = load(p.dy + at, lanes);
    du[i] = h_dh[i] = Vec{};
  }
  for (int64_t n = 0; n < N; ++n) {
    Vec v = state[n];
    for (int i = T - 1; i >= 0; --i) {
      v = a[i] * v + all(C[i][n]) * dy[i];
      du[i] += all(B[i][n]) * v;
      h_dh[i] += before[i * size + n] * v;
      const Vec term = PARTIAL ? masked(v * u[i], used) : v * u[i];
      r.sums[i * padded + n] = block ? r.sums[i * padded + n] + term : term;
    }
    state[n] = v;
  }
  for (int i = 0; i < T; ++i) {
    const int64_t at = x_at(p, k, event + i) + block * LANES;
    store(p.dx + at, du[i] * all(p.step[(event + i) * p.heads + k.head]), lanes);
    const Vec x_du = load(p.x + at, lanes) * du[i];
    products.x_du[i] += PARTIAL ? masked(x_du, used) : x_du;
    products.h_dh[i] += PARTIAL ? masked(h_dh[i], used) : h_dh[i];
  }
}

inline float lanes_sum(Vec v) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += v[i];
  return sum;
}

// T events from the last to the first.
template <int T>
inline void ssd_gradients(const SsdProblem& p, const Head& k, int64_t event, const float* decays, const Vec* before,
                          float* dB, const SsdScratch& r, double& dA) {
  SsdProducts<T> products{};
  const float* later = decays + 1;
  const int64_t whole = p.width / LANES;
  for (int64_t block = 0; block < whole; ++block)
    ssd_gradients_of<T, false>(p, k, block, event, later, before, r, products);
  if (whole < k.blocks) ssd_gradients_of<T, true>(p, k, whole, event, later, before, r, products);
  ssd_add_sums<T>(p, k, event, dB, r);
  for (int i = T - 1; i >= 0; --i) {
    const int64_t at = (event + i) * p.heads + k.head;
    const float dlog = decays[i] * lanes_sum(products.h_dh[i]);
    p.dstep[at] = lanes_sum(products.x_du[i]) + dlog * p.A[k.head];
    dA += static_cast<double>(dlog) * p.step[at];
  }
}

// The events of a chunk, from the last to the first, after its states.
void ssd_backward_chunk(const SsdProblem& p, const Head& k, int64_t chunk, float* dB, float* dC, const SsdScratch& r,
                        double& dA) {
  const int64_t first = k.row * p.length, size = k.blocks * p.states, begin = chunk * p.interval;
  const int64_t stop = std::min(begin + p.interval, p.length);
  std::memcpy(r.h, ssd_kept_at(p, k, chunk), static_cast<std::size_t>(size) * sizeof(Vec));
  for (int64_t t = begin, end; t < stop; t = end) {
    if (is_start(p, first + t)) clear(r.h, size);
    end = ssd_group_end(p, first, t);
    Vec* before = r.before + (t - begin) * size;
    if (end - t == AT_ONCE) {
      ssd_states<AT_ONCE>(p, k, first + t, r.decays + t, dC, before, r);
    } else {
      for (int64_t one = t; one < end; ++one)
        ssd_states<1>(p, k, first + one, r.decays + one, dC, r.before + (one - begin) * size, r);
    }
  }
  for (int64_t end = stop, t; end > begin; end = t) {
    t = end - 1;
    while (t > begin && t > end - AT_ONCE && !is_start(p, first + t)) --t;
    if (end - t == AT_ONCE) {
      ssd_gradients<AT_ONCE>(p, k, first + t, r.decays + t, r.before + (t - begin) * size, dB, r, dA);
    } else {
      for (int64_t one = end - 1; one >= t; --one)
        ssd_gradients<1>(p, k, first + one, r.decays + one, r.before + (one - begin) * size, dB, r, dA);
    }
    if (is_start(p, first + t)) {
      clear(r.dh, size);
      r.decays[t] = 0.f;  // of the event after t - 1, whose product with 0 would be NaN if it is
    }
  }
}

void ssd_backward_head(const SsdProblem& p, const Head& k, float* dB, float* dC, const SsdScratch& r) {
  const int64_t size = k.blocks * p.states;
  double dA = 0;
  ssd_decays(p, k, r.decays);
  r.decays[p.length] = 1.f;
  ssd_load_state(p, k, r.dh, p.dlast_state);
  for (int64_t chunk = (p.length + p.interval - 1) / p.interval - 1; chunk >= 0; --chunk)
    ssd_backward_chunk(p, k, chunk, dB, dC, r, dA);
  const Vec decay = all(r.decays[0]);
  for (int64_t i = 0; i < size; ++i) r.dh[i] *= decay;
  ssd_store_state(p, k, r.dh, p.dinitial_state);
  p.dA[k.row * p.heads + k.head] = static_cast<float>(dA);
}

// The heads of one part of a group of a row.
void ssd_backward_task(const SsdProblem& p, int64_t task, Vec* scratch) {
  const int64_t part = task % p.parts, group = task / p.parts % p.groups, row = task / p.parts / p.groups;
  const int64_t heads = p.heads / p.groups, slice = part * p.batch * p.length * p.groups * p.states;
  const SsdScratch r = ssd_scratch_in(p, scratch);
  for (int64_t head = part * heads / p.parts; head < (part + 1) * heads / p.parts; ++head)
    ssd_backward_head(p, head_at(p, row, group * heads + head), p.dB + slice, p.dC + slice, r);
}
