// Causal depthwise convolution. Letters as in problems.h; part of kernels.cpp.
//
// Threads run over pieces of E events. In each block of LANES channels a piece walks along its events and keeps the
// window, the W - 1 valid inputs before the present one, in registers. In backward a piece owns the gradients of its
// inputs and continues until the last of them has left the window, so no two threads write to one place. The first
// piece also owns the initial state: W - 1 inputs before the first event. A start empties the window by assignment,
// because a product with 0 would let NaN through. T is the type of x, of outputs, states and of their gradients: float or
// BFloat16.

inline int64_t pieces_of(const ConvProblem& p) { return std::max<int64_t>(1, (p.length + p.piece - 1) / p.piece); }

int64_t conv_scratch(const ConvProblem& p) { return 6 * p.taps; }

// Working memory of one block: W of each. The window is in the first W - 1, oldest first.
template <typename T>
struct Window {
  Vec *before, *x, *weight, *dx, *dweight;
  T** owner;  // address to which complete dx are written; null if another piece owns them
};

template <typename T>
inline Window<T> window_in(Vec* memory, T** owner, int64_t W) {
  return {memory, memory + W, memory + 2 * W, memory + 3 * W, memory + 4 * W, owner};
}

template <typename T>
inline const T* input_at(const ConvProblem& p, const Block& k, int64_t t) {
  return as<T>(p.x) + k.row * p.row_stride + t * p.event_stride + k.channel;
}

inline int64_t state_offset(const ConvProblem& p, const Block& k, int64_t w) {
  return (k.row * (p.taps - 1) + w) * p.channels + k.channel;
}

// The window before event `begin`: the nearest valid inputs, not past a start, and the initial state before them.
template <typename T>
void look_back(const ConvProblem& p, const Block& k, int64_t begin, Vec* window) {
  int64_t w = p.taps - 1;
  bool is_open = true;
  for (int64_t t = begin - 1; t >= 0 && w > 0 && is_open; --t) {
    const int64_t event = k.row * p.length + t;
    if (!is_padding(p, event)) window[--w] = load(input_at<T>(p, k, t), k.lanes);
    is_open = !is_start(p, event);
  }
  for (int64_t newest = p.taps - 1; w > 0;)
    window[--w] = is_open ? load_or_zero(as<T>(p.initial_state), state_offset(p, k, --newest), k.lanes) : Vec{};
}

template <typename T>
inline void begin_walk(const ConvProblem& p, const Block& k, int64_t begin, int64_t W, const Window<T>& r) {
  look_back<T>(p, k, begin, r.before);
  copy(r.x, r.before, W - 1);
  for (int64_t w = 0; w < W; ++w) r.weight[w] = load(p.weight + w * p.channels + k.channel, k.lanes);
}

template <typename T>
inline Vec convolved(const Window<T>& r, Vec now, Vec bias, int64_t W) {
  Vec sum = bias + now * r.weight[W - 1];
  for (int64_t w = 0; w < W - 1; ++w) sum += r.x[w] * r.weight[w];
  return sum;
}

// TAPS is W, or 0 if W is known only at run time.
template <int TAPS, typename T>
void conv_forward_block(const ConvProblem& p, const Block& k, int64_t begin, int64_t end, Vec* scratch) {
  const int64_t W = TAPS ? TAPS : p.taps;
  Vec own[TAPS ? 5 * TAPS : 1];
  const Window<T> r = window_in<T>(TAPS ? own : scratch, nullptr, W);
  begin_walk(p, k, begin, W, r);
  const Vec bias = load_or_zero(p.bias, k.channel, k.lanes);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t event = k.row * p.length + t, at = event * p.channels + k.channel;
    if (is_start(p, event)) clear(r.x, W - 1);
    if (is_padding(p, event)) {
      store(as<T>(p.out) + at, Vec{}, k.lanes);
      continue;
    }
    const Vec now = load(input_at<T>(p, k, t), k.lanes), sum = convolved(r, now, bias, W);
    store(as<T>(p.out) + at, p.silu ? sum / (all(1.f) + exp(-sum)) : sum, k.lanes);
    for (int64_t w = 0; w + 2 < W; ++w) r.x[w] = r.x[w + 1];
    if (W > 1) r.x[W - 2] = now;
  }
  if (end == p.length && p.last_state)
    for (int64_t w = 0; w < W - 1; ++w) store(as<T>(p.last_state) + state_offset(p, k, w), r.x[w], k.lanes);
}

// Write the gradients of the window to their owners, and forget the owners.
template <typename T>
inline void release(const Window<T>& r, int64_t W, int lanes) {
  for (int64_t w = 0; w < W - 1; ++w) {
    if (r.owner[w]) store(r.owner[w], r.dx[w], lanes);
    r.owner[w] = nullptr;
  }
}

template <int TAPS, typename T>
void conv_backward_block(const ConvProblem& p, const Block& k, int64_t begin, int64_t end, Vec* scratch) {
  const int64_t W = TAPS ? TAPS : p.taps;
  Vec own[TAPS ? 5 * TAPS : 1];
  T* own_owner[TAPS ? TAPS : 1];
  const Window<T> r = window_in(TAPS ? own : scratch, TAPS ? own_owner : reinterpret_cast<T**>(scratch + 5 * W), W);
  begin_walk(p, k, begin, W, r);
  clear(r.dx, W);
  clear(r.dweight, W);
  const bool has_state = begin == 0 && p.dinitial_state;
  for (int64_t w = 0; w < W - 1; ++w) r.owner[w] = has_state ? as<T>(p.dinitial_state) + state_offset(p, k, w) : nullptr;
  const Vec bias = load_or_zero(p.bias, k.channel, k.lanes);
  Vec dbias{};
  // After the piece, the windows of W - 1 valid events contain its inputs.
  for (int64_t t = begin, left = W - 1; t < p.length && (t < end || left > 0); ++t) {
    const int64_t event = k.row * p.length + t, at = event * p.channels + k.channel;
    T* dx_at = as<T>(p.dx) + event * p.dx_event + k.channel;
    const bool is_own = t < end;
    if (is_start(p, event)) {
      release(r, W, k.lanes);
      if (!is_own) break;
      clear(r.x, W - 1);
    }
    if (is_padding(p, event)) {
      if (is_own) store(dx_at, Vec{}, k.lanes);
      continue;
    }
    const Vec now = load(input_at<T>(p, k, t), k.lanes);
    Vec dout = load_or_zero(as<T>(p.dout), at, k.lanes);
    if (p.silu) {
      const Vec sum = convolved(r, now, bias, W), open = sigmoid(sum);
      dout *= open * (all(1.f) + sum * (all(1.f) - open));
    }
    if (is_own) {
      for (int64_t w = 0; w < W - 1; ++w) r.dweight[w] += dout * r.x[w];
      r.dweight[W - 1] += dout * now;
      dbias += dout;
    } else {
      --left;
    }
    for (int64_t w = 0; w < W - 1; ++w) r.dx[w] += dout * r.weight[w];
    r.dx[W - 1] = dout * r.weight[W - 1];
    r.owner[W - 1] = is_own ? dx_at : nullptr;
    if (r.owner[0]) store(r.owner[0], r.dx[0], k.lanes);
    for (int64_t w = 0; w + 1 < W; ++w) {
      r.x[w] = w + 2 < W ? r.x[w + 1] : now;
      r.dx[w] = r.dx[w + 1];
      r.owner[w] = r.owner[w + 1];
    }
  }
  if (p.dlast_state)
    for (int64_t w = 0; w < W - 1; ++w) r.dx[w] += load(as<T>(p.dlast_state) + state_offset(p, k, w), k.lanes);
  release(r, W, k.lanes);
  const int64_t slice = k.row * pieces_of(p) + begin / p.piece;
  for (int64_t w = 0; w < W; ++w) store(p.dweight + (slice * W + w) * p.channels + k.channel, r.dweight[w], k.lanes);
  store(p.dbias + slice * p.channels + k.channel, dbias, k.lanes);
}

// All blocks of one piece in turn: the cache still has the lines that they share.
template <void (*BLOCK)(const ConvProblem&, const Block&, int64_t, int64_t, Vec*)>
void walk_piece(const ConvProblem& p, int64_t task, Vec* scratch) {
  const int64_t row = task / pieces_of(p), begin = task % pieces_of(p) * p.piece;
  const int64_t end = std::min(begin + p.piece, p.length);
  for (int64_t block = 0; block < blocks_of(p); ++block) BLOCK(p, block_at(p, row, block), begin, end, scratch);
}

template <typename T>
void conv_forward_task(const ConvProblem& p, int64_t task, Vec* scratch) {
  const auto walk = p.taps == 4   ? walk_piece<conv_forward_block<4, T>>
                    : p.taps == 3 ? walk_piece<conv_forward_block<3, T>>
                    : p.taps == 2 ? walk_piece<conv_forward_block<2, T>>
                                  : walk_piece<conv_forward_block<0, T>>;
  walk(p, task, scratch);
}

template <typename T>
void conv_backward_task(const ConvProblem& p, int64_t task, Vec* scratch) {
  const auto walk = p.taps == 4   ? walk_piece<conv_backward_block<4, T>>
                    : p.taps == 3 ? walk_piece<conv_backward_block<3, T>>
                    : p.taps == 2 ? walk_piece<conv_backward_block<2, T>>
                                  : walk_piece<conv_backward_block<0, T>>;
  walk(p, task, scratch);
}
