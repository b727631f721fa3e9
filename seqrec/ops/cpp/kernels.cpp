// The scans, the causal convolution, attention, dropout and norms on CPU, forward and hand-written backward, the input
// of an event and its step through a Mamba mixer, scores of chosen items, softmax over a catalogue, and the best items,
// float32, behind a plain C ABI. One source, several builds, each by a file of its own: KERNEL_LANES is the number of
// floats in a vector register. Lanes run over channels. The order of sums does not depend on timing.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#ifndef KERNEL_LANES
#define KERNEL_LANES 4
#endif

#if KERNEL_LANES >= 8 && defined(__x86_64__)
#include <immintrin.h>
#endif

#include "problems.h"

// If this architecture lacks a build's instructions, the library has no functions.
#if KERNEL_LANES == 4 || defined(__x86_64__)

// The target is set here, not by compiler flags: one build description then works for every architecture. Standard
// headers come first, because their functions must run on any CPU.
#if KERNEL_LANES == 16
#define KERNEL_TARGET "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#elif KERNEL_LANES == 8
#define KERNEL_TARGET "avx2,fma"
#endif
#define KERNEL_PRAGMA(text) _Pragma(#text)
#define KERNEL_EXPAND(text) KERNEL_PRAGMA(text)
#ifdef KERNEL_TARGET
#ifdef __clang__
KERNEL_EXPAND(clang attribute push(__attribute__((target(KERNEL_TARGET))), apply_to = function))
#else
#pragma GCC push_options
KERNEL_EXPAND(GCC target(KERNEL_TARGET))
#endif
#endif

namespace {

#include "lanes.h"

// A block of LANES channels of one batch row; the last block of a row may have fewer lanes.
struct Block {
  int64_t row, channel;
  int lanes;
};

template <typename Problem>
inline int64_t blocks_of(const Problem& p) {
  return (p.channels + LANES - 1) / LANES;
}

template <typename Problem>
inline Block block_at(const Problem& p, int64_t row, int64_t block) {
  const int64_t channel = block * LANES;
  return {row, channel, static_cast<int>(std::min<int64_t>(LANES, p.channels - channel))};
}

template <typename Problem>
inline bool is_padding(const Problem& p, int64_t event) {
  return p.valid && !p.valid[event];
}

template <typename Problem>
inline bool is_start(const Problem& p, int64_t event) {
  return p.start && p.start[event];
}

#include "products.h"
#include "selective_scan.h"
#include "causal_conv1d.h"
#include "random.h"
#include "ssd.h"
#include "gated_norm.h"
#include "attention.h"
#include "dropout.h"
#include "event_input.h"
#include "residual_norm.h"
#include "mamba_step.h"
#include "attention_step.h"
#include "pair_scores.h"
#include "weight_gradient.h"
#include "best_items.h"
#include "cross_entropy.h"

}  // namespace

#ifdef KERNEL_TARGET
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

// Minimum units of work of a thread: about 50 us, twice the cost of starting it. A unit is one update of a state.
constexpr int64_t WORK_PER_THREAD = 1 << 18;

// Run task(p, i, scratch) for every i < tasks. Threads are started for each call: a pool (also OpenMP's) does not
// survive the fork of a data loader's worker, and one that waits by spinning would slow torch's own. The result does
// not depend on which thread runs a task. Returns 0, or 1 if memory cannot be allocated.
template <typename Problem>
int run(const Problem& p, int64_t tasks, int64_t work, int64_t scratch_vectors,
        void (*task)(const Problem&, int64_t, Vec*)) {
  const int64_t threads = std::max<int64_t>(1, std::min({p.threads, tasks, work / WORK_PER_THREAD}));
  const std::size_t bytes = static_cast<std::size_t>(scratch_vectors) * sizeof(Vec);
  const std::align_val_t alignment{64};
  char* scratch = static_cast<char*>(::operator new(bytes * threads, alignment, std::nothrow));
  if (!scratch) return 1;
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t thread) {
    for (int64_t i; (i = next++) < tasks;) task(p, i, reinterpret_cast<Vec*>(scratch + bytes * thread));
  };
  std::vector<std::thread> others;
  try {
    for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(take, thread);
  } catch (const std::exception&) {
    // The system refuses more threads: the present ones do all of the work.
  }
  take(0);
  for (std::thread& other : others) other.join();
  ::operator delete(scratch, alignment);
  return 0;
}

int64_t scan_work(const ScanProblem& p) {
  return p.batch * p.length * p.channels * std::max<int64_t>(p.states, 1);
}

int64_t ssd_work(const SsdProblem& p) { return p.batch * p.length * p.heads * p.width * std::max<int64_t>(p.states, 1); }

// An element of the convolution costs about as much as two updates of a state.
int64_t conv_work(const ConvProblem& p) { return 2 * p.batch * p.length * p.channels; }

int64_t attention_work(const AttentionProblem& p) {
  const int64_t seen = p.window ? std::min(p.window, p.length) : p.length;
  return p.batch * p.heads * p.length * seen * p.width / 4;
}

}  // namespace

#define KERNEL_EXPORT __attribute__((visibility("default")))

extern "C" {

KERNEL_EXPORT int64_t kernel_lanes() { return LANES; }

KERNEL_EXPORT int64_t scan_problem_bytes() { return sizeof(ScanProblem); }

KERNEL_EXPORT int64_t ssd_problem_bytes() { return sizeof(SsdProblem); }

KERNEL_EXPORT int64_t conv_problem_bytes() { return sizeof(ConvProblem); }

KERNEL_EXPORT int64_t gated_norm_problem_bytes() { return sizeof(GatedNormProblem); }

KERNEL_EXPORT int64_t product_problem_bytes() { return sizeof(ProductProblem); }

KERNEL_EXPORT int64_t attention_problem_bytes() { return sizeof(AttentionProblem); }

KERNEL_EXPORT int64_t dropout_problem_bytes() { return sizeof(DropoutProblem); }

KERNEL_EXPORT int64_t event_input_problem_bytes() { return sizeof(EventInputProblem); }

KERNEL_EXPORT int64_t residual_norm_problem_bytes() { return sizeof(ResidualNormProblem); }

KERNEL_EXPORT int64_t mamba_step_problem_bytes() { return sizeof(MambaStepProblem); }

KERNEL_EXPORT int64_t mamba2_step_problem_bytes() { return sizeof(Mamba2StepProblem); }

KERNEL_EXPORT int64_t attention_step_problem_bytes() { return sizeof(AttentionStepProblem); }

KERNEL_EXPORT int64_t pair_scores_problem_bytes() { return sizeof(PairScoresProblem); }

KERNEL_EXPORT int64_t weight_gradient_problem_bytes() { return sizeof(WeightGradientProblem); }

KERNEL_EXPORT int64_t cross_entropy_problem_bytes() { return sizeof(CrossEntropyProblem); }

KERNEL_EXPORT int64_t best_items_problem_bytes() { return sizeof(BestItemsProblem); }

KERNEL_EXPORT int scan_forward(const ScanProblem* p) {
  return run(*p, p->batch * blocks_of(*p), scan_work(*p), scan_forward_scratch(*p),
             p->narrow ? scan_forward_task<BFloat16> : scan_forward_task<float>);
}

KERNEL_EXPORT int scan_backward(const ScanProblem* p) {
  const auto task = p->narrow ? scan_backward_of<BFloat16>(*p) : scan_backward_of<float>(*p);
  return run(*p, p->batch * p->groups, scan_work(*p), scan_backward_scratch(*p), task);
}

KERNEL_EXPORT int ssd_forward(const SsdProblem* p) {
  return run(*p, p->batch * p->heads, ssd_work(*p), ssd_scratch_vectors(*p, false), ssd_forward_task);
}

KERNEL_EXPORT int ssd_backward(const SsdProblem* p) {
  return run(*p, p->batch * p->groups * p->parts, 3 * ssd_work(*p), ssd_scratch_vectors(*p, true), ssd_backward_task);
}

KERNEL_EXPORT int conv_forward(const ConvProblem* p) {
  return run(*p, p->batch * pieces_of(*p), conv_work(*p), conv_scratch(*p),
             p->narrow ? conv_forward_task<BFloat16> : conv_forward_task<float>);
}

KERNEL_EXPORT int conv_backward(const ConvProblem* p) {
  return run(*p, p->batch * pieces_of(*p), 2 * conv_work(*p), conv_scratch(*p),
             p->narrow ? conv_backward_task<BFloat16> : conv_backward_task<float>);
}

KERNEL_EXPORT int gated_norm_forward(const GatedNormProblem* p) {
  return run(*p, gated_norm_tasks(*p), p->events * p->width, gated_norm_scratch(*p), gated_norm_forward_task);
}

KERNEL_EXPORT int gated_norm_backward(const GatedNormProblem* p) {
  return run(*p, gated_norm_tasks(*p), 2 * p->events * p->width, gated_norm_scratch(*p), gated_norm_backward_task);
}

KERNEL_EXPORT int product(const ProductProblem* p) {
  return run(*p, (p->rows + PRODUCT_ROWS - 1) / PRODUCT_ROWS, p->rows * p->columns * p->steps / 4, 1, product_task);
}

KERNEL_EXPORT int attention_forward(const AttentionProblem* p) {
  const int64_t blocks = (p->length + QUERIES - 1) / QUERIES;
  return run(*p, p->batch * p->heads * blocks, attention_work(*p), attention_forward_scratch(*p), attention_forward_task);
}

KERNEL_EXPORT int attention_backward(const AttentionProblem* p) {
  return run(*p, p->batch * p->heads * p->parts, 3 * attention_work(*p), attention_backward_scratch(*p),
             attention_backward_task);
}

KERNEL_EXPORT int dropout(const DropoutProblem* p) {
  return run(*p, (p->count + ROW - 1) / ROW, p->count, 1, dropout_task);
}

KERNEL_EXPORT int event_input(const EventInputProblem* p) {
  *p->refused = table_without_row(*p);
  if (*p->refused >= 0) return 0;
  const int64_t tasks = (p->events + EVENTS - 1) / EVENTS;
  return run(*p, tasks, p->events * p->width * p->tables / 4, 1, event_input_task);
}

KERNEL_EXPORT int residual_norm_forward(const ResidualNormProblem* p) {
  const auto task = p->width == 64 ? residual_norm_forward_task<64 / LANES> : residual_norm_forward_task<0>;
  return run(*p, residual_norm_tasks(*p), p->events * p->width, residual_norm_scratch(*p), task);
}

KERNEL_EXPORT int residual_norm_backward(const ResidualNormProblem* p) {
  const auto task = p->width == 64 ? residual_norm_backward_task<64 / LANES> : residual_norm_backward_task<0>;
  return run(*p, residual_norm_tasks(*p), 2 * p->events * p->width, residual_norm_scratch(*p), task);
}

KERNEL_EXPORT int mamba_step(const MambaStepProblem* p) {
  return run(*p, pieces_of(*p), mamba_step_work(*p), mamba_step_scratch(*p), mamba_step_task);
}

KERNEL_EXPORT int mamba2_step(const Mamba2StepProblem* p) {
  return run(*p, pieces_of(*p), mamba2_step_work(*p), mamba2_step_scratch(*p), mamba2_step_task);
}

KERNEL_EXPORT int attention_step(const AttentionStepProblem* p) {
  return run(*p, pieces_of(*p), attention_step_work(*p), attention_step_scratch(*p), attention_step_task);
}

KERNEL_EXPORT int pair_scores_forward(const PairScoresProblem* p) {
  return run(*p, event_tasks(*p), p->events * p->draws * p->width / 4, 1, pair_scores_forward_task);
}

KERNEL_EXPORT int pair_scores_backward(const PairScoresProblem* p) {
  return run(*p, p->parts + event_tasks(*p), p->events * p->draws * p->width / 2, 1, pair_scores_backward_task);
}

KERNEL_EXPORT int weight_gradient(const WeightGradientProblem* p) {
  return run(*p, p->parts, weight_gradient_work(*p), weight_gradient_scratch(*p), weight_gradient_task);
}

KERNEL_EXPORT int cross_entropy_forward(const CrossEntropyProblem* p) {
  const int64_t tasks = (p->events + p->tile - 1) / p->tile;
  return run(*p, tasks, 2 * cross_entropy_work(*p), cross_entropy_scratch(*p), cross_entropy_forward_task);
}

KERNEL_EXPORT int cross_entropy_backward(const CrossEntropyProblem* p) {
  return run(*p, panels_of(*p), cross_entropy_work(*p), 1, cross_entropy_backward_task);
}

KERNEL_EXPORT int best_items(const BestItemsProblem* p) {
  const int64_t tasks = (p->users + p->tile - 1) / p->tile;
  return run(*p, tasks, p->users * (p->rows - p->first) * p->width / 4, best_items_scratch(*p), best_items_task);
}
}

#endif  // an architecture with these lanes

#include "module.h"
