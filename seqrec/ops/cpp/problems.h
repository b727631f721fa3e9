// The arguments of the library's functions. The layouts in `../compiled_library.py` repeat them
// field by field. B batch, L events, D channels; contiguous, last letter fastest, unless a comment states otherwise.
// A null pointer is an optional argument that was not given, or a result that is not needed.

#include <cstdint>

extern "C" {

// N states per channel, S events between two kept states.
struct ScanProblem {
  int64_t batch, length, channels, states;
  int64_t interval;  // S
  int64_t groups;    // parts into which backward splits the channel blocks of a row; one slice of dB, dC each
  // Numbers from one event to the next of z, of B and C, and of their gradients.
  int64_t z_event, weights_event, dz_event, dweights_event;
  int64_t threads, softplus;
  int64_t narrow;  // if u, delta, z, B, C, y, dy, du, ddelta and dz are bfloat16; all else is float32
  const uint8_t *valid, *start;       // (B, L), 0 or 1; all valid, no starts
  const float *u, *delta, *z;         // (B, L, D), z strided
  const float *A;                     // (D, N)
  const float *B, *C;                 // (B, L, N), strided
  const float *D, *delta_bias;        // (D,)
  const float *initial_state;         // (B, D, N)
  float *y;                           // (B, L, D)
  float *last_state;                  // (B, D, N)
  float *kept_states;                 // (B, ceil(L / S), N, D rounded up to 16)
  const float *dy, *dlast_state;      // as y, last_state
  float *du, *ddelta, *dz;            // (B, L, D), dz strided
  float *dA, *dD, *ddelta_bias;       // (B, D, N), (B, D), (B, D): one slice per row, to be summed
  float *dB, *dC;                     // (groups, B, L, N), strided, to be summed
  float *dinitial_state;              // (B, D, N)
};

// H heads in G groups, P rows and N columns of the state of each head, S events between two kept states.
struct SsdProblem {
  int64_t batch, length, heads, width, groups, states;
  int64_t interval;  // S, a multiple of 16
  int64_t parts;     // parts into which backward splits the heads of a group; one slice of dB, dC each
  // Floats from one event to the next of x, delta, B and C, and of their gradients.
  int64_t x_event, delta_event, weights_event, dx_event, ddelta_event, dweights_event;
  int64_t threads, softplus;
  const uint8_t *start;          // (B, L), 0 or 1; no starts
  const float *x;                // (B, L, H, P)
  const float *delta;            // (B, L, H)
  const float *A;                // (H,)
  const float *B, *C;            // (B, L, G, N)
  const float *D, *delta_bias;   // (H,)
  const float *initial_state;    // (B, H, P, N)
  float *y;                      // (B, L, H, P)
  float *last_state;             // (B, H, P, N)
  float *kept_states;            // (B, H, ceil(L / S), N, P rounded up to 16)
  const float *dy, *dlast_state; // as y, last_state
  float *dx, *ddelta;            // as x, delta
  float *dA, *dD;                // (B, H): one slice per row, to be summed
  float *dB, *dC;                // (parts, B, L, G, N), to be summed
  float *dinitial_state;         // (B, H, P, N)
};

// RMS norm over D numbers of each event, after a gate.
struct GatedNormProblem {
  int64_t events, width;      // B L, D
  int64_t z_event, dz_event;  // floats from one event to the next
  int64_t piece;              // events that a thread takes at a time
  int64_t threads;
  const float *y, *z;  // (B, L, D), z strided
  const float* weight;  // (D,)
  float* out;           // (B, L, D)
  const float* dout;
  float *dy, *dz;  // (B, L, D), dz strided
  float* dweight;  // (pieces, D), to be summed
};

// A residual sum over N events of D numbers, with dropout of the branch, and the layer norm of it.
struct ResidualNormProblem {
  int64_t events, width;  // N, D, a multiple of 16
  int64_t threshold;      // numbers of 16 bits below it drop an element of the branch
  int64_t piece;          // events that a thread takes at a time
  int64_t threads;
  const int64_t* seed;         // one number; not read without dropout
  const float *x, *branch;     // (N, D); x may be null, which is zeros
  const float *weight, *bias;  // (D,)
  float *out, *norm;           // (N, D)
  float *means, *roots;        // (N,): mean of `out`, and 1 / its standard deviation
  const float *dout, *dnorm;   // as out, norm
  float *dx, *dbranch;         // (N, D); they are equal without dropout
  float *dweight, *dbias;      // (pieces, D), to be summed
};

// W taps, E events of a piece, which is the part of a row that one thread takes at a time.
struct ConvProblem {
  int64_t batch, length, channels, taps;
  int64_t row_stride, event_stride;  // of x, in numbers
  int64_t dx_event;                  // numbers from one event of dx to the next
  int64_t piece;                     // E
  int64_t threads, silu;
  int64_t narrow;  // if x, out, the states and their gradients are bfloat16; all else is float32
  const uint8_t *valid, *start;  // (B, L), 0 or 1; all valid, no starts
  const float *x;                // (B, L, D), strided
  const float *weight;           // (W, D), oldest tap first
  const float *bias;             // (D,)
  const float *initial_state;    // (B, W - 1, D), oldest first; zeros
  float *out;                    // (B, L, D)
  float *last_state;             // as initial_state
  const float *dout, *dlast_state;
  float *dx;                // (B, L, D), strided
  float *dweight, *dbias;   // (B, ceil(L / E), W, D), (B, ceil(L / E), D): one slice per piece, to be summed
  float *dinitial_state;    // (B, W - 1, D)
};

// C (M, N) = A B, or C + A B, with A (M, K) and B (K, N).
struct ProductProblem {
  int64_t rows, columns, steps;  // M, N, K
  int64_t c_row, a_row, b_row;   // floats from one row to the next; those of B may be read up to 16 columns
  int64_t add;
  int64_t threads;
  const float *A, *B;
  float* C;
};

// Floats between rows, heads and events; a head's numbers follow each other.
struct Strides {
  int64_t row, head, event;
};

// H heads of width P.
struct AttentionProblem {
  int64_t batch, length, heads, width;
  Strides query_strides, key_strides, value_strides, dout_strides;
  int64_t causal;
  int64_t window;     // newest events that a query sees, itself included; 0 is all
  int64_t threshold;  // numbers of 16 bits below it drop a weight
  int64_t parts;      // parts into which backward splits the queries of a head; one slice of dkey, dvalue each
  int64_t threads;
  const int64_t* seed;                // one number; not read without dropout
  const int64_t* lengths;             // (B,), keys of a row that may be seen; all
  const float *query, *key, *value;   // (B, H, L, P), strided
  float* out;                         // (B, L, H, P)
  float* statistics;                  // (B, H, 2, L): a query's largest score, and 1 / the sum of weights
  const float* dout;                  // (B, H, L, P), strided
  float* dquery;                      // (B, L, H, P), every third event of (B, 3 L, H, P)
  float *dkey, *dvalue;               // like dquery; if there are parts, (parts, B, L, H, P), to be summed
};

// One further event of H heads of width P, which see it and the newest W - 1 of the kept ones; D = H P.
struct AttentionStepProblem {
  int64_t batch, heads, head_width, window;
  int64_t threads;
  const int64_t* turns;       // (P / 2,) in parts of a turn of 2^32; no rotation
  const int64_t* num_events;  // (B,) earlier events
  const float* x;             // (B, D)
  const float *in_weight, *in_bias;    // (3 D, D), (3 D,)
  const float *out_weight, *out_bias;  // (D, D), (D,)
  const float *keys, *values;          // (B, H, W, P), the newest last
  float* out;                          // (B, D)
  float *next_keys, *next_values;      // as keys, values
};

struct DropoutProblem {
  int64_t count;
  int64_t threshold;  // numbers of 16 bits below it drop an element
  int64_t threads;
  const int64_t* seed;
  const float* x;  // (count,)
  float* y;        // (count,)
};

// Rows of one of the tables that are added.
struct TableRows {
  const float* table;    // (rows, D)
  const int64_t* codes;  // (events,), or null
  int64_t rows, stride;  // floats from one row to the next
  int64_t least;         // smallest code that is allowed
  int64_t time;          // 0: codes are given; 1: those of gaps, 2: of hours, 3: of weekdays
  double scale;
};

// Sums of rows of several tables; a given code that is no row is refused. Times are in ticks of 1 / `second`.
struct EventInputProblem {
  int64_t events, width, tables;
  int64_t boundaries, second;
  int64_t offset;   // ticks that are added for hour and weekday
  int64_t no_time;  // stands in `before` for no event before
  int64_t threads;
  const TableRows* parts;         // (tables,)
  const int64_t *times, *before;  // (events,)
  const int64_t* boundary;        // (boundaries,), ascending
  int64_t* refused;               // one number: the first table of which a code is no row, or -1
  float* out;                     // (events, D)
};

// One event of a Mamba mixer: model width M, E channels, N states per channel, W taps, step sizes of rank R.
struct MambaStepProblem {
  int64_t batch, width, channels, states, taps, rank;
  int64_t inputs_stride, state_stride;  // floats from a row of inputs, and of state, to the next; also of the new ones
  int64_t threads;
  const float* x;             // (B, M)
  const float* in_weight;     // (2 E, M): the path, then the gate
  const float* conv_weight;   // (E, W)
  const float* conv_bias;     // (E,)
  const float* scan_weight;   // (R + 2 N, E): step sizes, B, C
  const float* delta_weight;  // (E, R)
  const float* delta_bias;    // (E,)
  const float* A_log;         // (E, N)
  const float* D;             // (E,)
  const float* out_weight;    // (M, E)
  const float* inputs;        // (B, W - 1, E): the last inputs of the convolution, the newest last
  const float* state;         // (B, E, N)
  const int64_t* rows;        // (B,) of inputs and state; null is 0 to B - 1
  const int64_t* next_rows;   // (B,) of next_inputs and next_state
  float* out;                 // (B, M)
  float *next_inputs, *next_state;
};

// One event of a Mamba-2 mixer: model width M, H heads of width P, E = H P, N states per channel, W taps.
struct Mamba2StepProblem {
  int64_t batch, width, heads, head_width, states, taps;
  int64_t inputs_stride, state_stride;  // floats from a row of inputs, and of state, to the next; also of the new ones
  int64_t threads;
  const float* x;            // (B, M)
  const float* in_weight;    // (2 E + 2 N + H, M): gate, path, B, C, step sizes
  const float* conv_weight;  // (E + 2 N, W)
  const float* conv_bias;    // (E + 2 N,)
  const float *delta_bias, *A_log, *D;  // (H,)
  const float* norm_weight;  // (E,)
  const float* out_weight;   // (M, E)
  const float* inputs;       // (B, W - 1, E + 2 N): the last inputs of the convolution, the newest last
  const float* state;        // (B, H, P, N)
  const int64_t* rows;       // (B,) of inputs and state; null is 0 to B - 1
  const int64_t* next_rows;  // (B,) of next_inputs and next_state
  float* out;                // (B, M)
  float *next_inputs, *next_state;
};

// Scores of N rows of a table (V, D) for each of M events.
struct PairScoresProblem {
  int64_t events, draws, width;  // M, N, D
  int64_t parts;                 // parts into which backward splits the columns of the table
  int64_t threads;
  const int64_t* item_ids;       // (M, N) rows of the table
  const float *states, *vectors; // (M, D), (V, D)
  float* scores;                 // (M, N)
  const float* dscores;          // (M, N)
  float *dstates, *dvectors;     // (M, D); (V, D), zero at entry
};

// The gradient of a linear map from D inputs to E outputs: sums over N rows, in some parts.
struct WeightGradientProblem {
  int64_t rows, outputs, inputs;    // N, E, D
  int64_t dout_row, x_row;          // floats from one row to the next
  int64_t parts;
  int64_t threads;
  const float *dout, *x;            // (N, E), (N, D)
  float *dweight, *dbias;           // (parts, E, D), (parts, E), to be summed; dbias may be null
};

// Softmax cross-entropy of M events against C candidates, of width D; scores are in units of log 2.
struct CrossEntropyProblem {
  int64_t events, candidates, width;  // M, C, D
  int64_t row;                        // R, room for events in `weights`, at least M
  int64_t tile;                       // events that one thread takes at a time
  int64_t threads;
  const int64_t* own;                 // (M,) the candidate that does not compete, or none of them
  const float* states;                // (M, D)
  const float* target;                // (M,) scores of the targets
  const float* vectors;               // (C, D)
  const float* packed;                // (P, D, 64) the same in P panels of columns
  const float* log_weights;           // (C,) added to the scores; may be null
  float* weights;                     // (P, R, 64) from forward to backward
  float *largest, *totals;            // (M,) largest score, and sum of the weights 2^(score - largest)
  float* dstates;                     // (M, D); may be null
  float* scaled;                      // (M, D) states / totals, not in units of log 2, for backward; may be null
  float* dvectors;                    // (C, D), added to
};

// The K best rows of a table (V, D) for each of B users, from row `first` on; or those of N chosen rows, which are then
// numbered by their places in `chosen`, also in `excluded` and `blocked`.
struct BestItemsProblem {
  int64_t users, rows, width, first, k;  // B, V or N, D, -, K
  int64_t num_blocked;            // length of `blocked`
  int64_t tile;                   // users that one thread takes at a time
  int64_t threads;
  const float *states, *vectors;  // (B, D), (V, D)
  const int64_t* chosen;          // (N,) ascending; all
  const int64_t* offsets;         // (B + 1,) of `excluded`
  const int64_t* excluded;        // rows that each user does not get, ascending; none
  const int64_t* blocked;         // rows that no user gets, ascending; none
  float* scores;                  // (B, K), best first; -inf if no more rows may be given
  int64_t* item_ids;              // (B, K), 0 likewise
};
}
