// The one argument of the library's functions. `_Problem` in `../compiled.py` repeats it, field by field.
// B batch, L events, D channels, N states a channel, S events between two kept states; contiguous, last letter fastest.

#include <cstdint>

extern "C" {
// Null pointers: an optional argument that was not given, or a result that nobody wants.
struct ScanProblem {
  int64_t batch, length, channels, states;
  int64_t interval;  // S
  int64_t groups;    // parts that the channel blocks of a row are split into in backward; dB, dC have one slice each
  int64_t threads, softplus;
  const float *u, *delta, *z;         // (B, L, D)
  const float *A;                     // (D, N)
  const float *B, *C;                 // (B, L, N)
  const float *D, *delta_bias;        // (D,)
  const float *initial_state;         // (B, D, N)
  float *y;                           // (B, L, D)
  float *last_state;                  // (B, D, N)
  float *kept_states;                 // (B, ceil(L / S), N, D rounded up to 16)
  const float *dy, *dlast_state;      // as y, last_state
  float *du, *ddelta, *dz;            // (B, L, D)
  float *dA, *dD, *ddelta_bias;       // (B, D, N), (B, D), (B, D): one slice a row, to be summed
  float *dB, *dC;                     // (groups, B, L, N), zero at entry, to be summed
  float *dinitial_state;              // (B, D, N)
};
}
