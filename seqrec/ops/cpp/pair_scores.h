// Dot products of states with chosen rows of a table. Letters as in problems.h; part of kernels.cpp.

// Pairs that one thread takes at a time, in whole events.
constexpr int64_t PAIRS = 2048;

inline int64_t events_of_task(const PairScoresProblem& p) {
  return std::max<int64_t>(1, PAIRS / std::max<int64_t>(1, p.draws));
}

inline int64_t event_tasks(const PairScoresProblem& p) {
  return (p.events + events_of_task(p) - 1) / events_of_task(p);
}

void pair_scores_forward_task(const PairScoresProblem& p, int64_t task, Vec*) {
  const int64_t D = p.width, whole = D / LANES * LANES;
  const int rest = static_cast<int>(D - whole);
  const int64_t begin = task * events_of_task(p) * p.draws;
  const int64_t end = std::min(p.events * p.draws, begin + events_of_task(p) * p.draws);
  for (int64_t pair = begin; pair < end; pair += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, end - pair));
    Vec sums[LANES]{};
    for (int k = 0; k < count; ++k) {
      const float* state = p.states + (pair + k) / p.draws * D;
      const float* row = p.vectors + p.item_ids[pair + k] * D;
      Vec sum{};
      for (int64_t d = 0; d < whole; d += LANES) sum += load(state + d) * load(row + d);
      if (rest) sum += load(state + whole, rest) * load(row + whole, rest);
      sums[k] = sum;
    }
    store(p.scores + pair, sums_of(sums), count);
  }
}

// The gradient of some columns of the table: pairs are added in their order, whatever the parts.
void add_to_vectors(const PairScoresProblem& p, int64_t part) {
  const int64_t D = p.width, vectors = (D + LANES - 1) / LANES;
  const int64_t first = part * vectors / p.parts * LANES, last = std::min(D, (part + 1) * vectors / p.parts * LANES);
  for (int64_t event = 0; event < p.events; ++event) {
    const float* state = p.states + event * D;
    for (int64_t n = 0; n < p.draws; ++n) {
      const int64_t pair = event * p.draws + n;
      float* row = p.dvectors + p.item_ids[pair] * D;
      const Vec weight = all(p.dscores[pair]);
      for (int64_t d = first; d < last; d += LANES) {
        const int some = static_cast<int>(std::min<int64_t>(LANES, last - d));
        store(row + d, load(row + d, some) + weight * load(state + d, some), some);
      }
    }
  }
}

// The first `parts` tasks compute the gradient of the table, the others that of some states each.
void pair_scores_backward_task(const PairScoresProblem& p, int64_t task, Vec*) {
  if (task < p.parts) {
    if (p.dvectors) add_to_vectors(p, task);
    return;
  }
  if (!p.dstates) return;
  const int64_t D = p.width, begin = (task - p.parts) * events_of_task(p);
  const int64_t end = std::min(p.events, begin + events_of_task(p));
  for (int64_t event = begin; event < end; ++event) {
    float* gradient = p.dstates + event * D;
    for (int64_t n = 0; n < p.draws; ++n) {
      const int64_t pair = event * p.draws + n;
      const float* row = p.vectors + p.item_ids[pair] * D;
      const Vec weight = all(p.dscores[pair]);
      for (int64_t d = 0; d < D; d += LANES) {
        const int some = static_cast<int>(std::min<int64_t>(LANES, D - d));
        const Vec before = n ? load(gradient + d, some) : Vec{};
        store(gradient + d, before + weight * load(row + d, some), some);
      }
    }
  }
}
