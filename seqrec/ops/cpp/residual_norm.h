// A residual sum, with dropout of the branch, and the layer norm of it. Letters as in problems.h; part of kernels.cpp.
//
// LANES events are taken at a time: the sums over each are then the lanes of one vector. V is the number of vectors of
// an event if it is a constant, or 0. The width is a multiple of 16.

inline int64_t residual_norm_tasks(const ResidualNormProblem& p) { return (p.events + p.piece - 1) / p.piece; }

// The kept elements of an event; backward also sums the gradients of weight and bias.
int64_t residual_norm_scratch(const ResidualNormProblem& p) {
  return (2 * DRAWN + 3 * p.width) / LANES;
}

// Call f(i) for the first element i of each vector of an event.
template <int V, typename F>
inline void each_vector(int64_t width, F f) {
  if constexpr (V > 0)
    for (int j = 0; j < V; ++j) f(j * LANES);
  else
    for (int64_t i = 0; i < width; i += LANES) f(i);
}

inline Vec load_or_zero(const float* from, int64_t offset) { return from ? load(from + offset) : Vec{}; }

// Which elements of an event dropout keeps: those that `dropout` of dropout.h keeps of all events in one piece.
class Kept {
 public:
  Kept(const ResidualNormProblem& p, Vec* room)
      : width(p.width),
        threshold(static_cast<int32_t>(p.threshold)),
        seed(p.threshold ? *p.seed : 0),
        room(floats(room)),
        scale(all(65536.f / static_cast<float>(65536 - p.threshold))) {}

  void draw(int64_t event) {
    if (!threshold) return;
    const int64_t begin = event * width, end = begin + width, aligned = begin / DRAWN * DRAWN;
    bits = room + (begin - aligned);
    for (int64_t at = aligned; at < end; at += DRAWN) {
      if (at / ROW != row) {
        row = at / ROW;
        const uint64_t key = row_key(seed, row);
        first = Words{} + static_cast<uint32_t>(key), second = Words{} + static_cast<uint32_t>(key >> 32);
      }
      float* to = room + (at - aligned);
      for (int64_t word = 0; word < WORDS; word += LANES) {
        const Words words = random_words(lane_numbers() + static_cast<uint32_t>(at % ROW / 2 + word), first, second);
        store(to + word, Vec(low_kept(words, threshold)));
        store(to + word + WORDS, Vec(high_kept(words, threshold)));
      }
    }
  }

  // The elements from `i` on of the event, 0 or scaled.
  Vec of(Vec v, int64_t i) const { return threshold ? where(Bits(load(bits + i)), v * scale) : v; }

 private:
  const int64_t width;
  const int32_t threshold;
  const int64_t seed;
  float* const room;
  const Vec scale;
  const float* bits = nullptr;
  int64_t row = -1;
  Words first{}, second{};
};

template <int V>
void residual_norm_forward_task(const ResidualNormProblem& p, int64_t task, Vec* scratch) {
  const int64_t D = p.width, end = std::min((task + 1) * p.piece, p.events);
  const float *weight = p.weight, *bias = p.bias;
  Kept kept(p, scratch);
  for (int64_t begin = task * p.piece; begin < end; begin += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, end - begin));
    const float *x = p.x ? p.x + begin * D : nullptr, *branch = p.branch + begin * D;
    float *out = p.out + begin * D, *norm = p.norm + begin * D;
    Vec sums[LANES]{}, squares[LANES]{}, root;
    for (int k = 0; k < count; ++k) {
      kept.draw(begin + k);
      Vec sum{};
      each_vector<V>(D, [&](int64_t i) {
        const Vec v = load_or_zero(x, k * D + i) + kept.of(load(branch + k * D + i), i);
        store(out + k * D + i, v);
        sum += v;
      });
      sums[k] = sum;
    }
    const Vec mean = sums_of(sums) / all(static_cast<float>(D));
    for (int k = 0; k < count; ++k) {
      const Vec middle = all(mean[k]);
      Vec square{};
      each_vector<V>(D, [&](int64_t i) {
        const Vec v = load(out + k * D + i) - middle;
        square += v * v;
      });
      squares[k] = square;
    }
    const Vec variance = sums_of(squares) / all(static_cast<float>(D));
    for (int k = 0; k < LANES; ++k) root[k] = 1.f / std::sqrt(variance[k] + NORM_EPS);
    store(p.means + begin, mean, count);
    store(p.roots + begin, root, count);
    for (int k = 0; k < count; ++k) {
      const Vec middle = all(mean[k]), scale = all(root[k]);
      each_vector<V>(D, [&](int64_t i) {
        const Vec v = (load(out + k * D + i) - middle) * scale;
        store(norm + k * D + i, v * load(weight + i) + load(bias + i));
      });
    }
  }
}

template <int V>
void residual_norm_backward_task(const ResidualNormProblem& p, int64_t task, Vec* scratch) {
  const int64_t D = p.width, vectors = D / LANES, end = std::min((task + 1) * p.piece, p.events);
  const float* weight = p.weight;
  Vec *dweight = scratch, *dbias = dweight + vectors;
  clear(dweight, 2 * vectors);
  Kept kept(p, dbias + vectors);
  for (int64_t begin = task * p.piece; begin < end; begin += LANES) {
    const int count = static_cast<int>(std::min<int64_t>(LANES, end - begin));
    const float *out = p.out + begin * D, *dnorm = p.dnorm + begin * D;
    const float *means = p.means + begin, *roots = p.roots + begin, *dout = p.dout ? p.dout + begin * D : nullptr;
    float *dx = p.dx ? p.dx + begin * D : nullptr, *dbranch = p.dbranch ? p.dbranch + begin * D : nullptr;
    Vec sums[LANES]{}, products[LANES]{};
    for (int k = 0; k < count; ++k) {
      const Vec mean = all(means[k]), root = all(roots[k]);
      Vec sum{}, product{};
      each_vector<V>(D, [&](int64_t i) {
        const Vec d = load(dnorm + k * D + i), g = d * load(weight + i);
        const Vec v = (load(out + k * D + i) - mean) * root;
        sum += g;
        product += g * v;
        dweight[i / LANES] += d * v;
        dbias[i / LANES] += d;
      });
      sums[k] = sum;
      products[k] = product;
    }
    const Vec mean_sum = sums_of(sums) / all(static_cast<float>(D));
    const Vec mean_product = sums_of(products) / all(static_cast<float>(D));
    for (int k = 0; k < count; ++k) {
      const Vec mean = all(means[k]), root = all(roots[k]), one = all(mean_sum[k]), other = all(mean_product[k]);
      if (dbranch) kept.draw(begin + k);
      each_vector<V>(D, [&](int64_t i) {
        const Vec v = (load(out + k * D + i) - mean) * root;
        const Vec g = load(dnorm + k * D + i) * load(weight + i);
        const Vec d = root * (g - one - v * other) + load_or_zero(dout, k * D + i);
        if (dx) store(dx + k * D + i, d);
        if (dbranch) store(dbranch + k * D + i, kept.of(d, i));
      });
    }
  }
  each_vector<V>(D, [&](int64_t i) {
    store(p.dweight + task * D + i, dweight[i / LANES]);
    store(p.dbias + task * D + i, dbias[i / LANES]);
  });
}
