// Products of small matrices with accumulators in registers. Part of kernels.cpp; letters as in problems.h.

constexpr int64_t PRODUCT_ROWS = 64;  // that a thread takes at a time

// C (rows, columns) = A B, or C + A B: `steps` products, A at [row * a_row + step * a_step], B at [step * b_row + column].
struct Product {
  float* C;
  int64_t c_row;
  const float* A;
  int64_t a_row, a_step;
  const float* B;
  int64_t b_row, steps;
  bool add;
  bool padded = false;  // rows of B may be read up to a whole vector
};

// R rows of V vectors; the last vector has `lanes` columns, of which PARTIAL reads no others.
template <int R, int V, bool PARTIAL>
inline void product_block(const Product& m, int64_t row, int64_t column, int lanes) {
  Vec sum[R][V];
  float* C = m.C + row * m.c_row + column;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = Vec{};
  const float* A = m.A + row * m.a_row;
  const float* B = m.B + column;
  for (int64_t step = 0; step < m.steps; ++step, A += m.a_step, B += m.b_row) {
    Vec b[V];
    for (int v = 0; v < V; ++v) b[v] = PARTIAL && v + 1 == V ? load(B + v * LANES, lanes) : load(B + v * LANES);
    for (int r = 0; r < R; ++r) {
      const Vec a = all(A[r * m.a_row]);
      for (int v = 0; v < V; ++v) sum[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      float* to = C + r * m.c_row + v * LANES;
      const int count = v + 1 < V ? LANES : lanes;
      store(to, m.add ? load(to, count) + sum[r][v] : sum[r][v], count);
    }
}

// The rows that are left over after whole blocks of R.
template <int R, int V, bool PARTIAL>
inline void product_rest(const Product& m, int64_t row, int64_t rows, int64_t column, int lanes) {
  if constexpr (R > 0) {
    if (rows == R) return product_block<R, V, PARTIAL>(m, row, column, lanes);
    product_rest<R - 1, V, PARTIAL>(m, row, rows, column, lanes);
  }
}

template <int V, bool PARTIAL>
inline void product_rows(const Product& m, int64_t rows, int64_t column, int lanes) {
  constexpr int R = V == 1 || (V == 2 && LANES == 16) ? 8 : 6;
  int64_t row = 0;
  for (; row + R <= rows; row += R) product_block<R, V, PARTIAL>(m, row, column, lanes);
  product_rest<R - 1, V, PARTIAL>(m, row, rows - row, column, lanes);
}

template <int V>
inline void product_columns(const Product& m, int64_t rows, int64_t columns, int64_t& column) {
  for (; column + (V - 1) * LANES < columns; column += V * LANES) {
    const int lanes = static_cast<int>(std::min<int64_t>(LANES, columns - column - (V - 1) * LANES));
    if (lanes == LANES || m.padded)
      product_rows<V, false>(m, rows, column, lanes);
    else
      product_rows<V, true>(m, rows, column, lanes);
  }
}

inline void product(const Product& m, int64_t rows, int64_t columns) {
  int64_t column = 0;
  if constexpr (LANES == 16) product_columns<4>(m, rows, columns, column);
  product_columns<2>(m, rows, columns, column);
  product_columns<1>(m, rows, columns, column);
}

// A few rows.
void product_task(const ProductProblem& p, int64_t task, Vec*) {
  const int64_t row = task * PRODUCT_ROWS;
  product({p.C + row * p.c_row, p.c_row, p.A + row * p.a_row, p.a_row, 1, p.B, p.b_row, p.steps, p.add != 0, true},
          std::min(PRODUCT_ROWS, p.rows - row), p.columns);
}
