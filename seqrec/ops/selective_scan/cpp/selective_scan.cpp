// Selective scan on CPU, forward and hand-written backward, float32, behind a plain C ABI.
//
// Letters as in problem.h. One source, several builds: SCAN_LANES is the number of floats in a vector register.
// Lanes run over channels, threads over batch rows and blocks of LANES channels, and each thread walks
// along the events. Nothing of size (B, L, D, N) is kept: forward writes the state before every S-th event,
// backward rebuilds the states of S events from it. Sums are made in an order that does not depend on timing.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#ifndef SCAN_LANES
#define SCAN_LANES 4
#endif

#include "problem.h"

// A build whose instructions this architecture lacks becomes a library without functions.
#if SCAN_LANES == 4 || defined(__x86_64__)

// The target is set here, not by compiler flags, so that one build description serves every architecture. Standard
// headers come first: their functions must stay runnable anywhere.
#if SCAN_LANES == 16
#define SCAN_TARGET "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#elif SCAN_LANES == 8
#define SCAN_TARGET "avx2,fma"
#endif
#define SCAN_PRAGMA(text) _Pragma(#text)
#define SCAN_EXPAND(text) SCAN_PRAGMA(text)
#ifdef SCAN_TARGET
#ifdef __clang__
SCAN_EXPAND(clang attribute push(__attribute__((target(SCAN_TARGET))), apply_to = function))
#else
#pragma GCC push_options
SCAN_EXPAND(GCC target(SCAN_TARGET))
#endif
#endif

namespace {

constexpr int64_t PADDING = 16;  // kept_states rounds D up to this, whatever LANES is

#include "lanes.h"

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

// to[n] += the sum over lanes of products[n]; products is overwritten and padded to whole blocks of LANES.
inline void add_sums(float* to, Vec* products, int64_t N, int lanes) {
  if (lanes < LANES) {
    // A lane without a channel holds zero times B or C, which is not zero where those are infinite.
    Bits used{};
    for (int i = 0; i < lanes; ++i) used[i] = -1;
    for (int64_t n = 0; n < N; ++n) products[n] = used ? products[n] : Vec{};
  }
  for (int64_t n = 0; n < N; n += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, N - n));
    for (int i = count; i < LANES; ++i) products[n + i] = Vec{};
    store(to + n, load(to + n, count) + sums_of(products + n), count);
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

// Where a block of channels of one batch row lies.
struct Block {
  int64_t row, channel;
  int lanes;
};

inline Block block_at(const ScanProblem& p, int64_t row, int64_t block) {
  const int64_t channel = block * LANES;
  return {row, channel, static_cast<int>(std::min<int64_t>(LANES, p.channels - channel))};
}

inline int64_t blocks_of(const ScanProblem& p) { return (p.channels + LANES - 1) / LANES; }

inline float* kept_at(const ScanProblem& p, const Block& k, int64_t chunk, int64_t n) {
  const int64_t chunks = (p.length + p.interval - 1) / p.interval;
  const int64_t width = (p.channels + PADDING - 1) / PADDING * PADDING;
  return p.kept_states + ((k.row * chunks + chunk) * p.states + n) * width + k.channel;
}

int64_t forward_scratch(const ScanProblem& p) { return 2 * p.states; }

void forward_task(const ScanProblem& p, int64_t task, Vec* scratch) {
  const Block k = block_at(p, task / blocks_of(p), task % blocks_of(p));
  const int64_t N = p.states, state_offset = (k.row * p.channels + k.channel) * N;
  Vec *h = scratch, *A2 = h + N;
  load_rows(A2, p.A + k.channel * N, N, k.lanes);
  for (int64_t n = 0; n < N; ++n) A2[n] *= all(LOG2_E);
  load_rows(h, p.initial_state ? p.initial_state + state_offset : nullptr, N, k.lanes);
  const Vec bias = load_or_zero(p.delta_bias, k.channel, k.lanes), D = load_or_zero(p.D, k.channel, k.lanes);
  for (int64_t t = 0; t < p.length; ++t) {
    if (p.kept_states && t % p.interval == 0)
      for (int64_t n = 0; n < N; ++n) store(kept_at(p, k, t / p.interval, n), h[n]);
    const int64_t event = k.row * p.length + t, at = event * p.channels + k.channel;
    const Vec step = step_of(load(p.delta + at, k.lanes) + bias, p.softplus).size, u = load(p.u + at, k.lanes);
    Vec y = advance<false>(h, h, nullptr, A2, step, step * u, p.B + event * N, p.C + event * N, N);
    if (p.D) y += D * u;
    if (p.z) {
      const Vec z = load(p.z + at, k.lanes);
      y *= z / (all(1.f) + exp(-z));
    }
    store(p.y + at, y, k.lanes);
  }
  store_rows(p.last_state + state_offset, h, N, k.lanes);
}

// Working memory of one backward thread, in vectors: S events of one block.
struct Rebuilt {
  Vec *h, *decay, *step, *slope, *u, *dy, *A, *A2, *dh, *dA, *dB, *dC;
};

int64_t backward_scratch(const ScanProblem& p) {
  return (2 * p.interval + 1) * p.states + 4 * p.interval + 6 * p.states + 2 * LANES;
}

Rebuilt rebuilt_in(const ScanProblem& p, Vec* scratch) {
  const int64_t N = p.states, S = p.interval, padded = N + LANES;
  const int64_t sizes[] = {(S + 1) * N, S * N, S, S, S, S, N, N, N, N, padded, padded};
  Vec* parts[12];
  for (int i = 0; i < 12; ++i) {
    parts[i] = scratch;
    scratch += sizes[i];
  }
  return {parts[0], parts[1], parts[2], parts[3], parts[4],  parts[5],
          parts[6], parts[7], parts[8], parts[9], parts[10], parts[11]};
}

// Rebuild the states of `count` events from the kept one, and send dy back through the gate.
void rebuild(const ScanProblem& p, const Block& k, int64_t chunk, int64_t count, Vec bias, Vec D, const Rebuilt& r) {
  const int64_t N = p.states;
  for (int64_t n = 0; n < N; ++n) r.h[n] = load(kept_at(p, k, chunk, n));
  for (int64_t t = 0; t < count; ++t) {
    const int64_t event = k.row * p.length + chunk * p.interval + t, at = event * p.channels + k.channel;
    const Step step = step_of(load(p.delta + at, k.lanes) + bias, p.softplus);
    const Vec u = load(p.u + at, k.lanes);
    Vec y = advance<true>(r.h + (t + 1) * N, r.h + t * N, r.decay + t * N, r.A2, step.size, step.size * u,
                          p.B + event * N, p.C + event * N, N);
    r.step[t] = step.size;
    r.slope[t] = step.slope;
    r.u[t] = u;
    r.dy[t] = load_or_zero(p.dy, at, k.lanes);
    if (p.z) {
      const Vec z = load(p.z + at, k.lanes), open = sigmoid(z);
      if (p.D) y += D * u;
      store(p.dz + at, r.dy[t] * y * open * (all(1.f) + z * (all(1.f) - open)), k.lanes);
      r.dy[t] *= z * open;
    }
  }
}

void backward_block(const ScanProblem& p, const Block& k, float* dB, float* dC, const Rebuilt& r) {
  const int64_t N = p.states, S = p.interval, state_offset = (k.row * p.channels + k.channel) * N;
  load_rows(r.A, p.A + k.channel * N, N, k.lanes);
  load_rows(r.dh, p.dlast_state ? p.dlast_state + state_offset : nullptr, N, k.lanes);
  for (int64_t n = 0; n < N; ++n) {
    r.A2[n] = r.A[n] * all(LOG2_E);
    r.dA[n] = Vec{};
  }
  const Vec bias = load_or_zero(p.delta_bias, k.channel, k.lanes), D = load_or_zero(p.D, k.channel, k.lanes);
  Vec dD{}, dbias{};
  for (int64_t chunk = (p.length + S - 1) / S - 1; chunk >= 0; --chunk) {
    const int64_t count = std::min(S, p.length - chunk * S);
    rebuild(p, k, chunk, count, bias, D, r);
    for (int64_t t = count - 1; t >= 0; --t) {
      const int64_t event = k.row * p.length + chunk * S + t, at = event * p.channels + k.channel;
      const float *B = p.B + event * N, *C = p.C + event * N;
      const Vec dy = r.dy[t], step = r.step[t], u = r.u[t], step_u = step * u;
      const Vec *before = r.h + t * N, *after = before + N, *decay = r.decay + t * N;
      Vec dstep_u{}, dstep{};
      for (int64_t n = 0; n < N; ++n) {
        const Vec dh = r.dh[n] + dy * all(C[n]);
        r.dC[n] = dy * after[n];
        r.dB[n] = dh * step_u;
        dstep_u += dh * all(B[n]);
        const Vec dbefore = dh * decay[n], dexponent = dbefore * before[n];
        dstep += dexponent * r.A[n];
        r.dA[n] += dexponent * step;
        r.dh[n] = dbefore;
      }
      add_sums(dB + event * N, r.dB, N, k.lanes);
      add_sums(dC + event * N, r.dC, N, k.lanes);
      const Vec ddelta = (dstep + dstep_u * u) * r.slope[t];
      store(p.du + at, dstep_u * step + D * dy, k.lanes);
      store(p.ddelta + at, ddelta, k.lanes);
      dbias += ddelta;
      dD += dy * u;
    }
  }
  store_rows(p.dA + state_offset, r.dA, N, k.lanes);
  if (p.dinitial_state) store_rows(p.dinitial_state + state_offset, r.dh, N, k.lanes);
  if (p.dD) store(p.dD + k.row * p.channels + k.channel, dD, k.lanes);
  if (p.ddelta_bias) store(p.ddelta_bias + k.row * p.channels + k.channel, dbias, k.lanes);
}

void backward_task(const ScanProblem& p, int64_t task, Vec* scratch) {
  const int64_t row = task / p.groups, group = task % p.groups, blocks = blocks_of(p);
  const int64_t slice = group * p.batch * p.length * p.states;
  const Rebuilt r = rebuilt_in(p, scratch);
  for (int64_t block = group * blocks / p.groups; block < (group + 1) * blocks / p.groups; ++block)
    backward_block(p, block_at(p, row, block), p.dB + slice, p.dC + slice, r);
}

}  // namespace

#ifdef SCAN_TARGET
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

// A thread must have at least this many state updates to do: about 50 us, twice what starting it costs.
constexpr int64_t UPDATES_PER_THREAD = 1 << 18;

// Run task(p, i, scratch) for every i < tasks. Threads are started here instead of kept: a pool (OpenMP's too) does
// not survive the fork of a data loader's worker, and one that waits by spinning would slow torch's own. Which thread
// takes which task does not matter to the result. Returns 0, or 1 where memory is short.
int run(const ScanProblem& p, int64_t tasks, int64_t scratch_vectors,
        void (*task)(const ScanProblem&, int64_t, Vec*)) {
  const int64_t updates = p.batch * p.length * p.channels * std::max<int64_t>(p.states, 1);
  const int64_t threads = std::max<int64_t>(1, std::min({p.threads, tasks, updates / UPDATES_PER_THREAD}));
  const std::size_t bytes = static_cast<std::size_t>(scratch_vectors) * sizeof(Vec);
  const std::align_val_t alignment{64};
  char* scratch = static_cast<char*>(::operator new(bytes * threads, alignment, std::nothrow));
  if (!scratch) return 1;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t thread) {
    for (int64_t i; (i = next++) < tasks;) task(p, i, reinterpret_cast<Vec*>(scratch + bytes * thread));
  };
  std::vector<std::thread> others;
  try {
    for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  } catch (const std::exception&) {
    // The system gives no more threads: those that there are do all of the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
  ::operator delete(scratch, alignment);
  return 0;
}

}  // namespace

#define SCAN_EXPORT __attribute__((visibility("default")))

extern "C" {

SCAN_EXPORT int64_t scan_lanes() { return LANES; }

SCAN_EXPORT int64_t scan_problem_bytes() { return sizeof(ScanProblem); }

SCAN_EXPORT int scan_forward(const ScanProblem* p) {
  return run(*p, p->batch * blocks_of(*p), forward_scratch(*p), forward_task);
}

SCAN_EXPORT int scan_backward(const ScanProblem* p) {
  return run(*p, p->batch * p->groups, backward_scratch(*p), backward_task);
}
}

#endif  // an architecture with these lanes

#include "module.h"
