// Attention by blocks of queries and keys (Rabe & Staats 2021; FlashAttention, Dao et al. 2022): no L x L numbers are
// kept, and blocks without a visible key are skipped. Part of kernels.cpp; letters as in problems.h.
//
// Lanes run over queries, so maxima and sums over keys need no sums over lanes, keys and values are read where they
// stand, and heads may have any width. Backward computes the weights again from each query's maximum and sum, and draws
// its dropout again.

constexpr int64_t QUERIES = 64, KEYS = 32, COLUMNS = QUERIES / LANES;

// Events of one head of one row.
struct Events {
  const float* data;
  int64_t stride;
};

inline Events events_of(const float* data, const Strides& s, int64_t row, int64_t head) {
  return {data + row * s.row + head * s.head, s.event};
}

// A block of queries, and the keys [begin, end) that one of them sees.
struct Queries {
  int64_t row, head, first, count, columns, begin, end;
};

inline Queries queries_at(const AttentionProblem& p, int64_t row, int64_t head, int64_t block) {
  Queries q{row, head, block * QUERIES, 0, 0, 0, 0};
  q.count = std::min(QUERIES, p.length - q.first);
  q.columns = (q.count + LANES - 1) / LANES;
  q.end = p.lengths ? std::min(p.lengths[row], p.length) : p.length;
  if (p.causal) q.end = std::min(q.end, q.first + q.count);
  q.begin = p.window ? std::max<int64_t>(0, q.first - p.window + 1) / KEYS * KEYS : 0;
  return q;
}

// The first column of queries that may see a key from `key` on.
inline int64_t first_column(const AttentionProblem& p, const Queries& q, int64_t key) {
  return p.causal ? std::max<int64_t>(0, key - q.first) / LANES : 0;
}

// Set the scores of hidden keys to -infinity, whose weight is 0.
inline void hide(const AttentionProblem& p, const Queries& q, int64_t key, int64_t rows, int64_t column, Vec* tile) {
  const bool future = p.causal && key + rows - 1 > q.first + column * LANES;
  const bool past = p.window && q.first + q.count - 1 - key >= p.window;
  if (!future && !past) return;
  const int32_t window = p.window ? static_cast<int32_t>(std::min<int64_t>(p.window, INT32_MAX)) : INT32_MAX;
  for (; column < q.columns; ++column) {
    // Distances from the block's first key.
    const Bits behind = Bits(lane_numbers()) + static_cast<int32_t>(q.first + column * LANES - key);
    for (int64_t r = 0; r < rows; ++r) {
      const Bits distance = behind - static_cast<int32_t>(r);
      const Bits seen = (p.causal ? distance >= Bits{} : ~Bits{}) & (distance < Bits{} + window);
      Vec& score = tile[r * COLUMNS + column];
      score = seen ? score : all(-INFINITY);
    }
  }
}

// Keys of the dropout of a column of queries.
struct Drawn {
  Words first, second;
};

inline void attention_keys(const AttentionProblem& p, const Queries& q, Drawn* drawn) {
  if (!p.threshold) return;
  for (int64_t column = 0; column < q.columns; ++column) {
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t query = q.first + column * LANES + lane;
      const uint64_t key = row_key(*p.seed, (q.row * p.heads + q.head) * p.length + query);
      drawn[column].first[lane] = static_cast<uint32_t>(key);
      drawn[column].second[lane] = static_cast<uint32_t>(key >> 32);
    }
  }
}

// Call use(row, kept) for the rows of a block of keys.
template <typename Use>
inline void with_dropout(const AttentionProblem& p, const Drawn& drawn, int64_t key, int64_t rows, Use use) {
  const int32_t threshold = static_cast<int32_t>(p.threshold);
  for (int64_t r = 0; r < std::min(rows, WORDS); ++r) {
    const Words words = random_words(Words{} + static_cast<uint32_t>(key / 2 + r), drawn.first, drawn.second);
    use(r, low_kept(words, threshold));
    if (r + WORDS < rows) use(r + WORDS, high_kept(words, threshold));
  }
}

inline float attention_scale(const AttentionProblem& p) { return 1.f / std::sqrt(static_cast<float>(p.width)); }

inline float dropout_scale(const AttentionProblem& p) { return 65536.f / static_cast<float>(65536 - p.threshold); }

// Columns of queries (width, COLUMNS) from events; lanes without a query are 0.
inline void transpose_in(const Queries& q, const Events& from, int64_t width, float scale, Vec* to) {
  float* out = reinterpret_cast<float*>(to);
  std::memset(out, 0, static_cast<std::size_t>(width * QUERIES) * sizeof(float));
  for (int64_t i = 0; i < q.count; ++i) {
    const float* event = from.data + (q.first + i) * from.stride;
    for (int64_t w = 0; w < width; ++w) out[w * QUERIES + i] = event[w] * scale;
  }
}

inline void transpose_out(const Queries& q, const Vec* from, int64_t width, float* to, int64_t stride) {
  const float* in = reinterpret_cast<const float*>(from);
  for (int64_t i = 0; i < q.count; ++i)
    for (int64_t w = 0; w < width; ++w) to[(q.first + i) * stride + w] = in[w * QUERIES + i];
}

// Scores of a block of keys, hidden ones at -infinity.
inline void scores_of(const AttentionProblem& p, const Queries& q, const Events& keys, int64_t key, int64_t rows,
                      int64_t column, const Vec* query, Vec* tile) {
  product({floats(tile + column), QUERIES, keys.data + key * keys.stride, keys.stride, 1, floats(query + column), QUERIES,
           p.width, false},
          rows, (q.columns - column) * LANES);
  hide(p, q, key, rows, column, tile);
}

// A query's maximum so far, sum of weights relative to it.
struct Softmax {
  Vec top[COLUMNS], sum[COLUMNS];
};

// Turn scores into weights; sums and outputs so far are scaled to the new maximum.
inline void softmax_further(const AttentionProblem& p, const Queries& q, int64_t rows, int64_t column, Vec* tile,
                            Softmax& soft, Vec* out) {
  for (; column < q.columns; ++column) {
    Vec top = soft.top[column], sum{};
    for (int64_t r = 0; r < rows; ++r) {
      const Vec score = tile[r * COLUMNS + column];
      top = score > top ? score : top;
    }
    const Vec fade = exp(soft.top[column] - top);
    for (int64_t r = 0; r < rows; ++r) {
      Vec& score = tile[r * COLUMNS + column];
      score = exp(score - top);
      sum += score;
    }
    for (int64_t w = 0; w < p.width; ++w) out[w * COLUMNS + column] *= fade;
    soft.sum[column] = soft.sum[column] * fade + sum;
    soft.top[column] = top;
  }
}

int64_t attention_forward_scratch(const AttentionProblem& p) { return (2 * p.width + KEYS) * COLUMNS; }

inline float* statistics_at(const AttentionProblem& p, const Queries& q) {
  return p.statistics + (q.row * p.heads + q.head) * 2 * p.length + q.first;
}

void attention_forward_task(const AttentionProblem& p, int64_t task, Vec* scratch) {
  const int64_t blocks = (p.length + QUERIES - 1) / QUERIES, row = task / blocks / p.heads;
  // The longest first.
  const Queries q = queries_at(p, row, task / blocks % p.heads, blocks - 1 - task % blocks);
  const Events keys = events_of(p.key, p.key_strides, row, q.head);
  const Events values = events_of(p.value, p.value_strides, row, q.head);
  Vec *query = scratch, *out = query + p.width * COLUMNS, *tile = out + p.width * COLUMNS;
  transpose_in(q, events_of(p.query, p.query_strides, row, q.head), p.width, attention_scale(p), query);
  clear(out, p.width * COLUMNS);
  Softmax soft;
  Drawn drawn[COLUMNS];
  // Finite, so that a difference of two maxima is never NaN where a query has seen no key yet.
  for (int64_t column = 0; column < COLUMNS; ++column) soft.top[column] = all(-1e30f), soft.sum[column] = Vec{};
  attention_keys(p, q, drawn);
  for (int64_t key = q.begin; key < q.end; key += KEYS) {
    const int64_t rows = std::min(KEYS, q.end - key), column = first_column(p, q, key);
    scores_of(p, q, keys, key, rows, column, query, tile);
    softmax_further(p, q, rows, column, tile, soft, out);
    for (int64_t c = column; p.threshold && c < q.columns; ++c)
      with_dropout(p, drawn[c], key, rows, [&](int64_t r, Bits kept) {
        tile[r * COLUMNS + c] = where(kept, tile[r * COLUMNS + c]);
      });
    product({floats(out + column), QUERIES, values.data + key * values.stride, 1, values.stride, floats(tile + column),
             QUERIES, rows, true},
            p.width, (q.columns - column) * LANES);
  }
  for (int64_t column = 0; column < q.columns; ++column) {
    const Vec share = soft.sum[column] > Vec{} ? all(1.f) / soft.sum[column] : Vec{};
    const Vec scale = share * all(dropout_scale(p));
    for (int64_t w = 0; w < p.width; ++w) out[w * COLUMNS + column] *= scale;
    if (!p.statistics) continue;
    const int lanes = static_cast<int>(std::min<int64_t>(LANES, q.count - column * LANES));
    store(statistics_at(p, q) + column * LANES, soft.top[column], lanes);
    store(statistics_at(p, q) + p.length + column * LANES, share, lanes);
  }
  transpose_out(q, out, p.width, p.out + (row * p.length * p.heads + q.head) * p.width, p.heads * p.width);
}

inline int64_t width_vectors(const AttentionProblem& p) { return (p.width + LANES - 1) / LANES; }

// Working memory of one backward thread. Natural: lanes over the width; else lanes over queries.
struct AttentionScratch {
  Vec *query, *dout, *dquery;              // (P, COLUMNS)
  Vec *natural_query, *natural_dout;       // (QUERIES, vectors of P)
  Vec *weights, *dscores;                  // (KEYS, COLUMNS)
  Vec *dkey, *dvalue;                      // (L, vectors of P), natural
};

int64_t attention_backward_scratch(const AttentionProblem& p) {
  return (3 * p.width + 2 * KEYS) * COLUMNS + 2 * (QUERIES + p.length) * width_vectors(p);
}

inline AttentionScratch attention_scratch_in(const AttentionProblem& p, Vec* scratch) {
  const int64_t block = p.width * COLUMNS, tile = KEYS * COLUMNS, natural = QUERIES * width_vectors(p);
  AttentionScratch r;
  r.query = scratch, r.dout = r.query + block, r.dquery = r.dout + block;
  r.natural_query = r.dquery + block, r.natural_dout = r.natural_query + natural;
  r.weights = r.natural_dout + natural, r.dscores = r.weights + tile;
  r.dkey = r.dscores + tile, r.dvalue = r.dkey + p.length * width_vectors(p);
  return r;
}

inline void natural_in(const AttentionProblem& p, const Queries& q, const Events& from, float scale, Vec* to) {
  for (int64_t i = 0; i < q.count; ++i)
    for (int64_t v = 0; v < width_vectors(p); ++v)
      to[i * width_vectors(p) + v] = all(scale) * load(from.data + (q.first + i) * from.stride + v * LANES,
                                                       static_cast<int>(std::min<int64_t>(LANES, p.width - v * LANES)));
}

// Turn scores into weights after dropout, and products of dout and values into gradients of scores.
inline void softmax_gradients(const AttentionProblem& p, const Drawn& drawn, int64_t key, int64_t rows, int64_t column,
                              Vec top, Vec share, Vec delta, const AttentionScratch& r) {
  const auto use = [&](int64_t row, Bits kept) {
    Vec &weight = r.weights[row * COLUMNS + column], &dscore = r.dscores[row * COLUMNS + column];
    const Vec whole = exp(weight - top) * share;
    dscore = whole * (where(kept, dscore) - delta);
    weight = where(kept, whole);
  };
  if (p.threshold) return with_dropout(p, drawn, key, rows, use);
  for (int64_t row = 0; row < rows; ++row) use(row, ~Bits{});
}

// Place of a head's first number in (parts, B, L, H, P), of which events are `apart` times H P from each other.
inline int64_t head_at(const AttentionProblem& p, int64_t part, int64_t row, int64_t head, int64_t apart) {
  return ((part * p.batch + row) * p.length * apart * p.heads + head) * p.width;
}

void attention_backward_queries(const AttentionProblem& p, const Queries& q, const AttentionScratch& r) {
  const Events keys = events_of(p.key, p.key_strides, q.row, q.head);
  const Events values = events_of(p.value, p.value_strides, q.row, q.head);
  const Events queries = events_of(p.query, p.query_strides, q.row, q.head);
  const Events douts = events_of(p.dout, p.dout_strides, q.row, q.head);
  const int64_t vectors = width_vectors(p), natural = vectors * LANES, at = (q.row * p.length * p.heads + q.head) * p.width;
  const float scale = attention_scale(p), kept_scale = dropout_scale(p);
  Vec top[COLUMNS], share[COLUMNS], delta[COLUMNS];
  Drawn drawn[COLUMNS];
  attention_keys(p, q, drawn);
  transpose_in(q, queries, p.width, scale, r.query);
  natural_in(p, q, queries, scale, r.natural_query);
  transpose_in(q, douts, p.width, kept_scale, r.dout);
  natural_in(p, q, douts, kept_scale, r.natural_dout);
  clear(r.dquery, p.width * COLUMNS);
  for (int64_t column = 0; column < q.columns; ++column) {
    const int lanes = static_cast<int>(std::min<int64_t>(LANES, q.count - column * LANES));
    top[column] = load(statistics_at(p, q) + column * LANES, lanes);
    share[column] = load(statistics_at(p, q) + p.length + column * LANES, lanes);
    delta[column] = Vec{};
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t event = q.first + column * LANES + lane;
      const float *out = p.out + at + event * p.heads * p.width, *dout = douts.data + event * douts.stride;
      float sum = 0;
      for (int64_t w = 0; w < p.width; ++w) sum += out[w] * dout[w];
      delta[column][lane] = sum;
    }
  }
  for (int64_t key = q.begin; key < q.end; key += KEYS) {
    const int64_t rows = std::min(KEYS, q.end - key), column = first_column(p, q, key);
    const int64_t columns = (q.columns - column) * LANES, skipped = column * LANES, seeing = q.count - skipped;
    scores_of(p, q, keys, key, rows, column, r.query, r.weights);
    product({floats(r.dscores + column), QUERIES, values.data + key * values.stride, values.stride, 1,
             floats(r.dout + column), QUERIES, p.width, false},
            rows, columns);
    for (int64_t c = column; c < q.columns; ++c)
      softmax_gradients(p, drawn[c], key, rows, c, top[c], share[c], delta[c], r);
    const float *weights = floats(r.weights) + skipped, *dscores = floats(r.dscores) + skipped;
    product({floats(r.dvalue + key * vectors), natural, weights, QUERIES, 1, floats(r.natural_dout + skipped * vectors),
             natural, seeing, true},
            rows, natural);
    product({floats(r.dkey + key * vectors), natural, dscores, QUERIES, 1, floats(r.natural_query + skipped * vectors),
             natural, seeing, true},
            rows, natural);
    product({floats(r.dquery + column), QUERIES, keys.data + key * keys.stride, 1, keys.stride, dscores, QUERIES, rows,
             true},
            p.width, columns);
  }
  for (int64_t i = 0; i < p.width * COLUMNS; ++i) r.dquery[i] *= all(scale);
  transpose_out(q, r.dquery, p.width, p.dquery + head_at(p, 0, q.row, q.head, 3), 3 * p.heads * p.width);
}

// Every `parts`-th block of queries of a head.
void attention_backward_task(const AttentionProblem& p, int64_t task, Vec* scratch) {
  const AttentionScratch r = attention_scratch_in(p, scratch);
  const int64_t part = task % p.parts, head = task / p.parts % p.heads, row = task / p.parts / p.heads;
  const int64_t vectors = width_vectors(p), blocks = (p.length + QUERIES - 1) / QUERIES;
  clear(r.dkey, 2 * p.length * vectors);
  for (int64_t block = part; block < blocks; block += p.parts)
    attention_backward_queries(p, queries_at(p, row, head, block), r);
  const int64_t apart = p.parts == 1 ? 3 : 1, at = head_at(p, part, row, head, apart), stride = apart * p.heads * p.width;
  for (int64_t event = 0; event < p.length; ++event) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, p.width - v * LANES));
      store(p.dkey + at + event * stride + v * LANES, r.dkey[event * vectors + v], lanes);
      store(p.dvalue + at + event * stride + v * LANES, r.dvalue[event * vectors + v], lanes);
    }
  }
}
