// RMS norm of a gated input (Mamba-2): y silu(z) over its root mean square, times a weight. Part of kernels.cpp.

constexpr float NORM_EPS = 1e-5f;  // `NORM_EPS` of ../mamba_mixer/mamba2.py

inline int64_t gated_norm_tasks(const GatedNormProblem& p) { return (p.events + p.piece - 1) / p.piece; }

inline int64_t gated_norm_scratch(const GatedNormProblem& p) { return 2 * ((p.width + LANES - 1) / LANES); }

inline float inverse_root(Vec squares, int64_t width) {
  return 1.f / std::sqrt(lanes_sum(squares) / static_cast<float>(width) + NORM_EPS);
}

void gated_norm_forward_task(const GatedNormProblem& p, int64_t task, Vec* gated) {
  for (int64_t event = task * p.piece; event < std::min((task + 1) * p.piece, p.events); ++event) {
    Vec squares{};
    for (int64_t i = 0; i < p.width; i += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - i));
      const Vec z = load(p.z + event * p.z_event + i, lanes), g = load(p.y + event * p.width + i, lanes) * z * sigmoid(z);
      gated[i / LANES] = g;
      squares += g * g;
    }
    const Vec scale = all(inverse_root(squares, p.width));
    for (int64_t i = 0; i < p.width; i += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - i));
      store(p.out + event * p.width + i, gated[i / LANES] * scale * load(p.weight + i, lanes), lanes);
    }
  }
}

void gated_norm_backward_task(const GatedNormProblem& p, int64_t task, Vec* opened) {
  Vec* dweight = opened + (p.width + LANES - 1) / LANES;
  clear(dweight, (p.width + LANES - 1) / LANES);
  for (int64_t event = task * p.piece; event < std::min((task + 1) * p.piece, p.events); ++event) {
    const float *y = p.y + event * p.width, *z = p.z + event * p.z_event, *dout = p.dout + event * p.width;
    Vec squares{}, products{};
    for (int64_t i = 0; i < p.width; i += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - i));
      const Vec v = load(z + i, lanes), open = sigmoid(v), g = load(y + i, lanes) * v * open;
      opened[i / LANES] = open;
      squares += g * g;
      products += g * load(dout + i, lanes) * load(p.weight + i, lanes);
    }
    const float root = inverse_root(squares, p.width);
    const Vec scale = all(root), share = all(root * root * lanes_sum(products) / static_cast<float>(p.width));
    for (int64_t i = 0; i < p.width; i += LANES) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - i));
      const Vec v = load(z + i, lanes), open = opened[i / LANES], silu = v * open, before = load(y + i, lanes);
      const Vec g = before * silu, d = load(dout + i, lanes);
      const Vec dg = scale * (load(p.weight + i, lanes) * d - g * share);
      dweight[i / LANES] += d * g * scale;
      store(p.dy + event * p.width + i, dg * silu, lanes);
      store(p.dz + event * p.dz_event + i, dg * before * open * (all(1.f) + v * (all(1.f) - open)), lanes);
    }
  }
  for (int64_t i = 0; i < p.width; i += LANES)
    store(p.dweight + task * p.width + i, dweight[i / LANES], static_cast<int>(std::min<int64_t>(LANES, p.width - i)));
}
