// One further event of an attention layer, from its input to its output, over the keys and values that a stream keeps.
// Part of kernels.cpp; letters as in problems.h.

inline int64_t width_of(const AttentionStepProblem& p) { return p.heads * p.head_width; }

int64_t attention_step_scratch(const AttentionStepProblem& p) {
  return whole_vectors(3 * width_of(p)) + whole_vectors(width_of(p)) + whole_vectors(p.window);
}

int64_t attention_step_work(const AttentionStepProblem& p) {
  return p.batch * width_of(p) * (4 * width_of(p) + 2 * p.window) / 8;
}

inline void add_to(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

// Rotate P numbers of a head by the position; see `rotate` in `../attention/rotary.py`.
void turn(const AttentionStepProblem& p, int64_t position, float* x) {
  const int64_t half = p.head_width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const auto part = static_cast<uint32_t>(static_cast<uint64_t>(position) * static_cast<uint64_t>(p.turns[i]));
    const float angle = static_cast<float>(part) * static_cast<float>(6.283185307179586 / 4294967296.0);
    const float cosine = std::cos(angle), sine = std::sin(angle), first = x[i], second = x[i + half];
    x[i] = first * cosine - second * sine;
    x[i + half] = second * cosine + first * sine;
  }
}

// Keep the newest W - 1 of W kept vectors, and a new one.
inline float* shift(const AttentionStepProblem& p, const float* kept, float* keep, const float* added) {
  const int64_t older = (p.window - 1) * p.head_width;
  std::memcpy(keep, kept + p.head_width, sizeof(float) * older);
  std::memcpy(keep + older, added, sizeof(float) * p.head_width);
  return keep;
}

// exp of scores over their sum, of which the largest is 0.
void softmax(float* scores, int64_t count, float scale) {
  float largest = -INFINITY;
  for (int64_t i = 0; i < count; ++i) largest = scores[i] < largest ? largest : scores[i];  // lets a NaN through
  float sum = 0.f;
  for (int64_t i = 0; i < count; i += LANES) {
    const int some = static_cast<int>(std::min<int64_t>(LANES, count - i));
    store(scores + i, exp((load(scores + i, some) - all(largest)) * all(scale)), some);
  }
  for (int64_t i = 0; i < count; ++i) sum += scores[i];
  for (int64_t i = 0; i < count; ++i) scores[i] /= sum;
}

void attention_step_event(const AttentionStepProblem& p, int64_t row, float* packed, float* mixed, float* scores) {
  const int64_t D = width_of(p), P = p.head_width, W = p.window;
  product(packed, p.in_weight, 3 * D, D, p.x + row * D);
  add_to(packed, p.in_bias, 3 * D);
  // Older slots are empty.
  const int64_t first = std::max<int64_t>(0, W - 1 - p.num_events[row]), seen = W - first;
  for (int64_t h = 0; h < p.heads; ++h) {
    float *query = packed + h * P, *key = query + D, *value = key + D;
    if (p.turns) turn(p, p.num_events[row], query), turn(p, p.num_events[row], key);
    const int64_t at = (row * p.heads + h) * W * P;
    const float* keys = shift(p, p.keys + at, p.next_keys + at, key) + first * P;
    const float* values = shift(p, p.values + at, p.next_values + at, value) + first * P;
    product(scores, keys, seen, P, query);
    softmax(scores, seen, 1.f / std::sqrt(static_cast<float>(P)));
    product({mixed + h * P, P, scores, seen, 1, values, P, seen, false}, 1, P);
  }
  product(p.out + row * D, p.out_weight, D, D, mixed);
  add_to(p.out + row * D, p.out_bias, D);
}

void attention_step_task(const AttentionStepProblem& p, int64_t task, Vec* scratch) {
  float* packed = floats(scratch);
  float* mixed = floats(scratch += whole_vectors(3 * width_of(p)));
  float* scores = floats(scratch += whole_vectors(width_of(p)));
  const int64_t begin = task * piece_of(p), end = std::min(p.batch, begin + piece_of(p));
  for (int64_t row = begin; row < end; ++row) attention_step_event(p, row, packed, mixed, scores);
}
