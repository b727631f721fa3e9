// Softmax cross-entropy of a block of events against all candidates, with its gradients. Letters as in problems.h; part
// of kernels.cpp. Scores are in units of log 2.
//
// Candidates are taken in panels of ACROSS. Forward keeps the weights 2^(score - largest) of a few events at a time in
// the second-level cache, where they become the states' gradient. Backward sums the candidates' gradient over the block.

constexpr int64_t ACROSS = 64;  // candidates of a panel, and events that are summed in registers
constexpr float LN_2 = 0.693147181f;

inline int64_t panels_of(const CrossEntropyProblem& p) { return (p.candidates + ACROSS - 1) / ACROSS; }

inline int64_t cross_entropy_work(const CrossEntropyProblem& p) { return p.events * p.candidates * p.width / 4; }

// The largest score of each event, by lane.
int64_t cross_entropy_scratch(const CrossEntropyProblem& p) { return p.tile; }

void cross_entropy_forward_task(const CrossEntropyProblem& p, int64_t task, Vec* largest) {
  const int64_t begin = task * p.tile, events = std::min(p.tile, p.events - begin), D = p.width;
  for (int64_t event = 0; event < events; ++event) largest[event] = all(p.target[begin + event]);
  for (int64_t panel = 0; panel < panels_of(p); ++panel) {
    const int64_t first = panel * ACROSS, count = std::min(ACROSS, p.candidates - first);
    float* scores = p.weights + (panel * p.row + begin) * ACROSS;
    product({scores, ACROSS, p.states + begin * D, D, 1, p.packed + first * D, ACROSS, D, false}, events, ACROSS);
    for (int64_t event = 0; event < events; ++event, scores += ACROSS) {
      std::fill(scores + count, scores + ACROSS, -INFINITY);
      if (p.log_weights)
        for (int64_t i = 0; i < count; ++i) scores[i] += p.log_weights[first + i];
      const int64_t own = p.own[begin + event] - first;
      if (own >= 0 && own < count) scores[own] = -INFINITY;
      for (int64_t i = 0; i < ACROSS; i += LANES) {
        const Vec score = load(scores + i);
        largest[event] = score > largest[event] ? score : largest[event];
      }
    }
  }
  for (int64_t event = 0; event < events; ++event) {
    float most = largest[event][0];
    for (int i = 1; i < LANES; ++i) most = std::max(most, largest[event][i]);
    p.largest[begin + event] = most;
    largest[event] = Vec{};  // from here on the sums of weights
  }
  if (p.dstates) std::fill_n(p.dstates + begin * D, events * D, 0.f);
  for (int64_t panel = 0; panel < panels_of(p); ++panel) {
    const int64_t first = panel * ACROSS, count = std::min(ACROSS, p.candidates - first);
    float* weights = p.weights + (panel * p.row + begin) * ACROSS;
    for (int64_t event = 0; event < events; ++event) {
      const Vec most = all(p.largest[begin + event]);
      for (int64_t i = 0; i < ACROSS; i += LANES) {
        float* at = weights + event * ACROSS + i;
        const Vec weight = exp2(load(at) - most);
        store(at, weight);
        largest[event] += weight;
      }
    }
    if (p.dstates)
      product({p.dstates + begin * D, D, weights, ACROSS, 1, p.vectors + first * D, D, count, true}, events, D);
  }
  for (int64_t event = begin; event < begin + events; ++event) {
    const float own = exp2(all(p.target[event] - p.largest[event]))[0];
    const float total = lanes_sum(largest[event - begin]) + own, share = 1.f / total;
    p.totals[event] = total;
    for (int64_t d = 0; p.dstates && d < D; ++d) p.dstates[event * D + d] *= share;
    for (int64_t d = 0; p.scaled && d < D; ++d) p.scaled[event * D + d] = p.states[event * D + d] * (share * LN_2);
  }
}

void cross_entropy_backward_task(const CrossEntropyProblem& p, int64_t panel, Vec*) {
  const int64_t first = panel * ACROSS, count = std::min(ACROSS, p.candidates - first), D = p.width;
  for (int64_t event = 0; event < p.events; event += ACROSS) {
    const int64_t events = std::min(ACROSS, p.events - event);
    const float* weights = p.weights + (panel * p.row + event) * ACROSS;
    product({p.dvectors + first * D, D, weights, 1, ACROSS, p.scaled + event * D, D, events, true}, count, D);
  }
}
