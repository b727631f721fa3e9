// The gradient of a linear map's weight and bias: sums over rows. Letters as in problems.h; part of kernels.cpp.
//
// Each part of the rows has a sum of its own, and each block of a part is summed before it is added, so that neither
// threads nor many rows cost digits.

// Rows that are summed in registers.
constexpr int64_t SUMMED = 128;

inline int64_t input_vectors(const WeightGradientProblem& p) { return (p.inputs + LANES - 1) / LANES; }

// The sum of a part.
int64_t weight_gradient_scratch(const WeightGradientProblem& p) { return p.outputs * input_vectors(p); }

int64_t weight_gradient_work(const WeightGradientProblem& p) { return p.rows * p.outputs * p.inputs / 4; }

void weight_gradient_task(const WeightGradientProblem& p, int64_t part, Vec* sum) {
  const int64_t vectors = input_vectors(p), end = (part + 1) * p.rows / p.parts;
  float* dbias = p.dbias ? p.dbias + part * p.outputs : nullptr;
  clear(sum, p.outputs * vectors);
  if (dbias) std::fill_n(dbias, p.outputs, 0.f);
  for (int64_t row = part * p.rows / p.parts; row < end; row += SUMMED) {
    const int64_t rows = std::min(SUMMED, end - row);
    const float* dout = p.dout + row * p.dout_row;
    product({floats(sum), vectors * LANES, dout, 1, p.dout_row, p.x + row * p.x_row, p.x_row, rows, true}, p.outputs,
            p.inputs);
    for (int64_t o = 0; dbias && o < p.outputs; o += LANES) {
      const int count = static_cast<int>(std::min<int64_t>(LANES, p.outputs - o));
      Vec total{};
      for (int64_t i = 0; i < rows; ++i) total += load(dout + i * p.dout_row + o, count);
      store(dbias + o, load(dbias + o, count) + total, count);
    }
  }
  for (int64_t o = 0; o < p.outputs; ++o)
    for (int64_t v = 0; v < vectors; ++v)
      store(p.dweight + (part * p.outputs + o) * p.inputs + v * LANES, sum[o * vectors + v],
            static_cast<int>(std::min<int64_t>(LANES, p.inputs - v * LANES)));
}
