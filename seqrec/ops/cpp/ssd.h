// State-space-dual scan (Mamba-2; Dao & Gu 2024, section 6). Letters as in problems.h; part of kernels.cpp.
//
// A chunk of at most S events is computed by products of small matrices: events through the state before the chunk, and
// events through each other, as attention whose weights are products of decays. Such products, never quotients, are
// multiplied up event by event. Nothing of size (B, L, H, P, N) is kept: forward writes the state before every S-th
// event. Chunks end before a start, and what is not finite is a chunk of its own, because products with 0 let NaN through.

constexpr int64_t TRIANGLE = LANES < 8 ? LANES : 8;  // rows of a triangular matrix that are multiplied together

struct Head {
  int64_t row, head, group;
};

inline Head head_at(const SsdProblem& p, int64_t row, int64_t head) { return {row, head, head / (p.heads / p.groups)}; }

inline int64_t padded_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

inline int64_t ssd_padded_width(const SsdProblem& p) { return padded_to(p.width, PADDING); }

inline int64_t ssd_state_size(const SsdProblem& p) { return p.states * ssd_padded_width(p); }

// The numbers of one event of a head.
inline const float* x_at(const SsdProblem& p, const Head& k, int64_t event) {
  return p.x + event * p.x_event + k.head * p.width;
}

inline int64_t y_at(const SsdProblem& p, const Head& k, int64_t event) { return (event * p.heads + k.head) * p.width; }

inline int64_t weights_at(const SsdProblem& p, const Head& k, int64_t event) {
  return event * p.weights_event + k.group * p.states;
}

// Working memory of a thread; a null base only counts its floats. S x S: `reach` and `pairs` of `ssd_pairs`. (S, N):
// `scaled`. A name with T is transposed: its rows have one number for each event. Forward uses those up to `state`.
struct SsdScratch {
  float *steps, *decays, *reach, *pairs, *scaled, *BT, *carry, *into, *state;
  float *slopes, *dstate, *before, *dpairs, *XT, *dyT, *hT, *dhT, *h_sums, *dh_sums, *step_sums, *dlog;
  int64_t* ends;  // of the chunks between two kept states
  int64_t size;
};

SsdScratch ssd_scratch(const SsdProblem& p, float* base, bool backward) {
  SsdScratch r{};
  const auto take = [&](int64_t count) {
    float* at = base ? base + r.size : nullptr;
    r.size += padded_to(count, PADDING);
    return at;
  };
  const int64_t S = p.interval, N = padded_to(p.states, PADDING), P = ssd_padded_width(p), state = ssd_state_size(p);
  r.steps = take(p.length + LANES), r.decays = take(p.length + LANES);
  r.reach = take(S * S), r.pairs = take(S * S), r.scaled = take(S * N), r.BT = take(N * S), r.carry = take(S);
  r.into = take(S), r.state = take(state);
  if (!backward) return r;
  r.slopes = take(p.length + LANES), r.dstate = take(state), r.before = take(S * state);
  r.dpairs = take(S * S), r.XT = take(P * S), r.dyT = take(P * S), r.hT = take(N * S), r.dhT = take(N * S);
  r.h_sums = take(S), r.dh_sums = take(S), r.step_sums = take(S), r.dlog = take(S);
  r.ends = reinterpret_cast<int64_t*>(take(2 * S));
  return r;
}

int64_t ssd_scratch_vectors(const SsdProblem& p, bool backward) {
  return (ssd_scratch(p, nullptr, backward).size + LANES - 1) / LANES;
}

// Step sizes and decays of all events of a head.
void ssd_steps(const SsdProblem& p, const Head& k, const SsdScratch& r) {
  const float* delta = p.delta + k.row * p.length * p.delta_event + k.head;
  const Vec bias = all(p.delta_bias ? p.delta_bias[k.head] : 0.f), A = all(p.A[k.head]);
  for (int64_t t = 0; t < p.length; t += LANES) {
    Vec v{};
    for (int64_t i = 0; i < std::min<int64_t>(LANES, p.length - t); ++i) v[i] = delta[(t + i) * p.delta_event];
    const Step step = step_of(v + bias, p.softplus);
    store(r.steps + t, step.size);
    store(r.decays + t, exp(step.size * A));
    if (r.slopes) store(r.slopes + t, step.slope);
  }
}

// `to` (columns, rows of `to_row`) = `from` (rows, columns) transposed, with zeros up to whole vectors.
void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; row += LANES) {
    for (int64_t column = 0; column < columns; column += LANES) {
      Vec v[LANES];
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, columns - column));
      for (int i = 0; i < LANES; ++i) v[i] = row + i < rows ? load(from + (row + i) * from_row + column, lanes) : Vec{};
      transpose_lanes(v);
      for (int i = 0; i < lanes; ++i) store(to + (column + i) * to_row + row, v[i]);
    }
  }
}

// Whether all numbers that a product of events [event, end) reads are finite.
bool are_finite(const SsdProblem& p, const Head& k, int64_t event, int64_t end, const float* dy) {
  Vec sums[4]{};  // become NaN; several, because each addition waits for the one before
  const auto read = [](const float* from, int64_t count, Vec& sum) {
    for (int64_t i = 0; i < count; i += LANES)
      sum += Vec{} * load(from + i, static_cast<int>(std::min<int64_t>(LANES, count - i)));
  };
  for (; event < end; ++event) {
    read(x_at(p, k, event), p.width, sums[0]);
    read(p.B + weights_at(p, k, event), p.states, sums[1]);
    read(p.C + weights_at(p, k, event), p.states, sums[2]);
    if (dy) read(dy + y_at(p, k, event), p.width, sums[3]);
  }
  return lanes_sum(sums[0] + sums[1] + sums[2] + sums[3]) == 0.f;
}

// The end of the chunk that begins at t.
int64_t ssd_chunk_end(const SsdProblem& p, const Head& k, int64_t t, const float* dy) {
  const int64_t first = k.row * p.length, most = std::min(p.length, (t / p.interval + 1) * p.interval);
  int64_t end = t + 1;
  while (end < most && !is_start(p, first + end)) ++end;
  if (are_finite(p, k, first + t, first + end, dy)) return end;
  end = t;
  while (are_finite(p, k, first + end, first + end + 1, dy)) ++end;
  return std::max(end, t + 1);
}

// Lanes of a vector of events from `first` on that are before event `end`.
inline Bits lanes_before(int64_t first, int64_t end) {
  return Bits(lane_numbers()) < Bits{} + static_cast<int32_t>(end - first);
}

// The chunk [t, t + T): B transposed, reach[i, j], the product of the decays of events j + 1 to i, carry[i], that of all
// up to i, and pairs[i, j] = C_i . B_j.
void ssd_pairs(const SsdProblem& p, const Head& k, int64_t t, int64_t T, const SsdScratch& r) {
  const int64_t S = p.interval, at = weights_at(p, k, k.row * p.length + t);
  transpose(p.B + at, p.weights_event, T, p.states, r.BT, S);
  product({r.pairs, S, p.C + at, p.weights_event, 1, r.BT, S, p.states, false, true}, T, T);
  float carried = 1.f;
  for (int64_t i = 0; i < T; ++i) {
    const float decay = r.decays[t + i];
    r.carry[i] = carried *= decay;
    for (int64_t j = 0; j < T; j += LANES) {
      const Vec above = i ? load(r.reach + (i - 1) * S + j) : Vec{};
      store(r.reach + i * S + j, where(lanes_before(j, i), above * all(decay)));
    }
    r.reach[i * S + i] = 1.f;
  }
}

// `to` (T, N) = `weights` (T, N), those of each event times its factor.
void ssd_scale(const SsdProblem& p, const float* weights, int64_t T, const float* factors, float* to) {
  const int64_t N = padded_to(p.states, PADDING);
  for (int64_t i = 0; i < T; ++i)
    for (int64_t n = 0; n < p.states; ++n) to[i * N + n] = weights[i * p.weights_event + n] * factors[i];
}

// The state after a chunk.
void ssd_state_after(const SsdProblem& p, const Head& k, int64_t t, int64_t T, const SsdScratch& r) {
  const int64_t N = padded_to(p.states, PADDING), P = ssd_padded_width(p), event = k.row * p.length + t;
  const Vec carry = all(r.carry[T - 1]);
  for (int64_t i = 0; i < ssd_state_size(p); i += LANES) store(r.state + i, load(r.state + i) * carry);
  for (int64_t i = 0; i < T; ++i) r.into[i] = r.reach[(T - 1) * p.interval + i] * r.steps[t + i];
  ssd_scale(p, p.B + weights_at(p, k, event), T, r.into, r.scaled);
  product({r.state, P, r.scaled, 1, N, x_at(p, k, event), p.x_event, T, true}, p.states, p.width);
}

void ssd_forward_chunk(const SsdProblem& p, const Head& k, int64_t t, int64_t T, const SsdScratch& r) {
  const int64_t S = p.interval, N = padded_to(p.states, PADDING), P = ssd_padded_width(p);
  const int64_t event = k.row * p.length + t, y_event = p.heads * p.width;
  float* y = p.y + y_at(p, k, event);
  ssd_pairs(p, k, t, T, r);
  for (int64_t i = 0; i < T; ++i) {
    for (int64_t j = 0; j < T; j += LANES) {
      const Vec weight = load(r.pairs + i * S + j) * load(r.reach + i * S + j) * load(r.steps + t + j);
      store(r.pairs + i * S + j, where(lanes_before(j, i + 1), weight));
    }
    if (p.D) r.pairs[i * S + i] += p.D[k.head];
  }
  for (int64_t i = 0; i < T; i += TRIANGLE) {
    const int64_t rows = std::min(TRIANGLE, T - i);
    product({y + i * y_event, y_event, r.pairs + i * S, S, 1, x_at(p, k, event), p.x_event, i + rows, false}, rows,
            p.width);
  }
  ssd_scale(p, p.C + weights_at(p, k, event), T, r.carry, r.scaled);
  product({y, y_event, r.scaled, N, 1, r.state, P, p.states, true, true}, T, p.width);
  ssd_state_after(p, k, t, T, r);
}

inline float* ssd_kept_at(const SsdProblem& p, const Head& k, int64_t chunk) {
  const int64_t chunks = (p.length + p.interval - 1) / p.interval;
  return p.kept_states + ((k.row * p.heads + k.head) * chunks + chunk) * ssd_state_size(p);
}

// States (P, N) in memory are (N, P) here, and zero up to whole vectors.
void ssd_load_state(const SsdProblem& p, const Head& k, const float* from, float* to) {
  const int64_t P = ssd_padded_width(p);
  std::memset(to, 0, static_cast<std::size_t>(ssd_state_size(p)) * sizeof(float));
  if (from) from += (k.row * p.heads + k.head) * p.width * p.states;
  for (int64_t n = 0; from && n < p.states; ++n)
    for (int64_t i = 0; i < p.width; ++i) to[n * P + i] = from[i * p.states + n];
}

void ssd_store_state(const SsdProblem& p, const Head& k, const float* from, float* to) {
  const int64_t P = ssd_padded_width(p);
  to += (k.row * p.heads + k.head) * p.width * p.states;
  for (int64_t n = 0; n < p.states; ++n)
    for (int64_t i = 0; i < p.width; ++i) to[i * p.states + n] = from[n * P + i];
}

inline void ssd_clear(const SsdProblem& p, float* state) {
  std::memset(state, 0, static_cast<std::size_t>(ssd_state_size(p)) * sizeof(float));
}

void ssd_forward_task(const SsdProblem& p, int64_t task, Vec* scratch) {
  const Head k = head_at(p, task / p.heads, task % p.heads);
  const SsdScratch r = ssd_scratch(p, floats(scratch), false);
  ssd_steps(p, k, r);
  ssd_load_state(p, k, p.initial_state, r.state);
  for (int64_t t = 0, end; t < p.length; t = end) {
    if (p.kept_states && t % p.interval == 0)
      std::memcpy(ssd_kept_at(p, k, t / p.interval), r.state, static_cast<std::size_t>(ssd_state_size(p)) * sizeof(float));
    if (is_start(p, k.row * p.length + t)) ssd_clear(p, r.state);
    end = ssd_chunk_end(p, k, t, nullptr);
    ssd_forward_chunk(p, k, t, end - t, r);
  }
  if (p.last_state) ssd_store_state(p, k, r.state, p.last_state);
}

// sums[i] = the sum over n of weights[i, n] gT[n, i], and dweights[i, n] = or += factors[i] gT[n, i].
void ssd_through_state(const SsdProblem& p, int64_t T, const float* gT, const float* weights, const float* factors,
                       float* dweights, float* sums) {
  for (int64_t i = 0; i < T; i += LANES) {
    Vec total[LANES]{};
    for (int64_t n = 0; n < p.states; n += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.states - n));
      Vec v[LANES];
      for (int j = 0; j < LANES; ++j) v[j] = j < lanes ? load(gT + (n + j) * p.interval + i) : Vec{};
      transpose_lanes(v);
      for (int64_t j = 0; j < std::min<int64_t>(LANES, T - i); ++j) {
        float* to = dweights + (i + j) * p.dweights_event + n;
        total[j] += v[j] * load(weights + (i + j) * p.weights_event + n, lanes);
        store(to, load(to, lanes) + v[j] * all(factors[i + j]), lanes);
      }
    }
    store(sums + i, sums_of(total));
  }
}

// Gradients through the pairs of events: dpairs[i, j] = dy_i . x_j becomes that of C_i . B_j, and pairs[i, j] the weight of
// x_j in y_i. step_sums[j] is the gradient of the step size as a factor of x_j; dlog[i] that of the logarithm of the decay
// of event i, a sum over all pairs of events that it lies between.
void ssd_pair_gradients(const SsdProblem& p, int64_t t, int64_t T, const SsdScratch& r) {
  const int64_t S = p.interval;
  for (int64_t j = 0; j < T; j += LANES) store(r.dlog + j, Vec{});
  for (int64_t j = 0; j < T; j += LANES) {
    const Vec steps = load(r.steps + t + j);
    Vec later{}, step_sums{}, terms[LANES]{};  // later: over the events from i on
    for (int64_t i = T - 1; i >= j; --i) {
      const Bits seen = lanes_before(j, i + 1), before = lanes_before(j, i);
      const int64_t at = i * S + j;
      const Vec reach = where(seen, load(r.reach + at)), dpair = where(seen, load(r.dpairs + at));
      const Vec weight = where(seen, load(r.pairs + at)) * reach, change = dpair * weight;
      step_sums += change;
      later += where(before, change * steps);
      store(r.pairs + at, where(seen, weight * steps));
      store(r.dpairs + at, where(seen, dpair * reach * steps));
      terms[i % LANES] = where(before, later);
      if (i % LANES == 0) {
        store(r.dlog + i, load(r.dlog + i) + sums_of(terms));
        clear(terms, LANES);
      }
    }
    store(r.step_sums + j, step_sums);
  }
}

// Gradients of the step sizes of a chunk, and of A.
void ssd_step_gradients(const SsdProblem& p, const Head& k, int64_t t, int64_t T, const SsdScratch& r, double& dA) {
  const int64_t P = ssd_padded_width(p);
  const float* reach = r.reach + (T - 1) * p.interval;
  Vec products{};
  for (int64_t n = 0; n < p.states; ++n)
    for (int64_t i = 0; i < p.width; i += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - i));
      products += load(r.state + n * P + i, lanes) * load(r.dstate + n * P + i, lanes);
    }
  double later = double(r.carry[T - 1]) * lanes_sum(products), earlier = 0;
  for (int64_t i = T - 1; i >= 0; --i) r.dlog[i] += static_cast<float>(later += double(r.carry[i]) * r.h_sums[i]);
  for (int64_t i = 0; i < T; ++i) {
    const float direct = reach[i] * r.dh_sums[i], step = r.steps[t + i], dlog = r.dlog[i] + static_cast<float>(earlier);
    earlier += double(direct) * step;
    dA += double(dlog) * step;
    p.ddelta[(k.row * p.length + t + i) * p.ddelta_event + k.head] =
        (r.step_sums[i] + direct + dlog * p.A[k.head]) * r.slopes[t + i];
  }
}

// The gradients of a chunk from the state before it, r.state, and the gradient of that after it, r.dstate.
void ssd_backward_chunk(const SsdProblem& p, const Head& k, int64_t t, int64_t T, float* dB, float* dC, bool add,
                        const SsdScratch& r, double& dA, double& dD) {
  const int64_t S = p.interval, N = padded_to(p.states, PADDING), P = ssd_padded_width(p);
  const int64_t event = k.row * p.length + t, y_event = p.heads * p.width, at = weights_at(p, k, event);
  const float *x = x_at(p, k, event), *dy = p.dy + y_at(p, k, event), *B = p.B + at, *C = p.C + at;
  float* dx = p.dx + event * p.dx_event + k.head * p.width;
  dB += event * p.dweights_event + k.group * p.states, dC += event * p.dweights_event + k.group * p.states;
  ssd_pairs(p, k, t, T, r);
  transpose(x, p.x_event, T, p.width, r.XT, S);
  transpose(dy, y_event, T, p.width, r.dyT, S);
  product({r.dpairs, S, dy, y_event, 1, r.XT, S, p.width, false, true}, T, T);
  for (int64_t i = 0; i < T; ++i) dD += r.dpairs[i * S + i];
  ssd_pair_gradients(p, t, T, r);
  for (int64_t i = 0; p.D && i < T; ++i) r.pairs[i * S + i] += p.D[k.head];
  for (int64_t i = 0; i < T; i += TRIANGLE) {
    const int64_t rows = std::min(TRIANGLE, T - i), corner = i * S + i;
    product({dx + i * p.dx_event, p.dx_event, r.pairs + corner, 1, S, dy + i * y_event, y_event, T - i, false}, rows,
            p.width);
    product({dC + i * p.dweights_event, p.dweights_event, r.dpairs + i * S, S, 1, B, p.weights_event, i + rows, add}, rows,
            p.states);
    product({dB + i * p.dweights_event, p.dweights_event, r.dpairs + corner, 1, S, C + i * p.weights_event,
             p.weights_event, T - i, add},
            rows, p.states);
  }
  for (int64_t i = 0; i < T; ++i) r.into[i] = r.reach[(T - 1) * S + i] * r.steps[t + i];
  ssd_scale(p, B, T, r.into, r.scaled);
  product({dx, p.dx_event, r.scaled, N, 1, r.dstate, P, p.states, true, true}, T, p.width);
  product({r.hT, S, r.state, P, 1, r.dyT, S, p.width, false, true}, p.states, T);
  product({r.dhT, S, r.dstate, P, 1, r.XT, S, p.width, false, true}, p.states, T);
  ssd_through_state(p, T, r.hT, C, r.carry, dC, r.h_sums);
  ssd_through_state(p, T, r.dhT, B, r.into, dB, r.dh_sums);
  ssd_step_gradients(p, k, t, T, r, dA);
  const Vec carry = all(r.carry[T - 1]);
  for (int64_t i = 0; i < ssd_state_size(p); i += LANES) store(r.dstate + i, load(r.dstate + i) * carry);
  ssd_scale(p, C, T, r.carry, r.scaled);
  product({r.dstate, P, r.scaled, 1, N, dy, y_event, T, true}, p.states, p.width);
}

// The chunks between two kept states, from the last to the first, after the states before them.
void ssd_backward_interval(const SsdProblem& p, const Head& k, int64_t begin, float* dB, float* dC, bool add,
                           const SsdScratch& r, double& dA, double& dD) {
  const int64_t size = ssd_state_size(p), first = k.row * p.length, stop = std::min(begin + p.interval, p.length);
  const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
  int64_t count = 0;
  std::memcpy(r.state, ssd_kept_at(p, k, begin / p.interval), bytes);
  for (int64_t t = begin, end; t < stop; t = end, ++count) {
    if (is_start(p, first + t)) ssd_clear(p, r.state);
    std::memcpy(r.before + count * size, r.state, bytes);
    r.ends[count] = end = ssd_chunk_end(p, k, t, p.dy);
    if (end == stop) continue;
    ssd_pairs(p, k, t, end - t, r);
    ssd_state_after(p, k, t, end - t, r);
  }
  while (count-- > 0) {
    const int64_t t = count ? r.ends[count - 1] : begin;
    std::memcpy(r.state, r.before + count * size, bytes);
    ssd_backward_chunk(p, k, t, r.ends[count] - t, dB, dC, add, r, dA, dD);
    if (is_start(p, first + t)) ssd_clear(p, r.dstate);
  }
}

// The heads of one part of a group of a row.
void ssd_backward_task(const SsdProblem& p, int64_t task, Vec* scratch) {
  const int64_t part = task % p.parts, group = task / p.parts % p.groups, row = task / p.parts / p.groups;
  const int64_t heads = p.heads / p.groups, slice = part * p.batch * p.length * p.dweights_event;
  const int64_t first = part * heads / p.parts;
  const SsdScratch r = ssd_scratch(p, floats(scratch), true);
  for (int64_t head = first; head < (part + 1) * heads / p.parts; ++head) {
    const Head k = head_at(p, row, group * heads + head);
    double dA = 0, dD = 0;
    ssd_steps(p, k, r);
    ssd_load_state(p, k, p.dlast_state, r.dstate);
    for (int64_t begin = (p.length - 1) / p.interval * p.interval; begin >= 0; begin -= p.interval)
      ssd_backward_interval(p, k, begin, p.dB + slice, p.dC + slice, head > first, r, dA, dD);
    if (p.dinitial_state) ssd_store_state(p, k, r.dstate, p.dinitial_state);
    p.dA[row * p.heads + k.head] = static_cast<float>(dA);
    p.dD[row * p.heads + k.head] = static_cast<float>(dD);
  }
}
