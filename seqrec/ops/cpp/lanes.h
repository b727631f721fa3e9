// Arithmetic on vectors of KERNEL_LANES floats. Include it once, after the target's instructions are switched on.
// For compilers of the GCC family only, which have vectors of any width (`vector_size`).

constexpr int LANES = KERNEL_LANES;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

// Less 0, because x + 0 is not -0 for -0: compilers would add.
inline Vec all(float x) { return x - Vec{}; }

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// Load the first `count` lanes; the others are zero, and their memory is not read.
#if KERNEL_LANES == 8
inline __m256i first_lanes(int count) { return __m256i(Bits{0, 1, 2, 3, 4, 5, 6, 7} < Bits{} + count); }

inline Vec load(const float* from, int count) {
  return count == LANES ? load(from) : Vec(_mm256_maskload_ps(from, first_lanes(count)));
}

inline void store(float* to, Vec v, int count) {
  if (count == LANES) return store(to, v);
  _mm256_maskstore_ps(to, first_lanes(count), __m256(v));
}
#else
inline Vec load(const float* from, int count) {
  if (count == LANES) return load(from);
  Vec v{};
  for (int i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

inline void store(float* to, Vec v, int count) {
  if (count == LANES) return store(to, v);
  for (int i = 0; i < count; ++i) to[i] = v[i];
}
#endif

// A bfloat16 in memory: the upper half of a float32. Arithmetic is float32.
struct BFloat16 {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

inline Vec load(const BFloat16* from, int count) {
  Halves halves{};
  if (count == LANES)
    std::memcpy(&halves, from, sizeof halves);
  else
    for (int i = 0; i < count; ++i) halves[i] = from[i].bits;
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Vec v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}

// Rounded to the nearest, of two to the even one; a NaN stays one.
inline void store(BFloat16* to, Vec v, int count) {
  Words words;
  std::memcpy(&words, &v, sizeof v);
  const Words rounded = (words + ((words >> 16) & 1) + 0x7fff) >> 16, quiet = (words >> 16) | 0x40;
  const Halves halves = __builtin_convertvector(v == v ? rounded : quiet, Halves);
  if (count == LANES)
    std::memcpy(to, &halves, sizeof halves);
  else
    for (int i = 0; i < count; ++i) to[i].bits = halves[i];
}

// A pointer of a problem to activations, which are float32 or bfloat16.
template <typename T>
inline const T* as(const float* x) {
  return reinterpret_cast<const T*>(x);
}

template <typename T>
inline T* as(float* x) {
  return reinterpret_cast<T*>(x);
}

inline float* floats(Vec* v) { return reinterpret_cast<float*>(v); }

inline const float* floats(const Vec* v) { return reinterpret_cast<const float*>(v); }

template <typename T>
inline Vec load_or_zero(const T* from, int64_t offset, int count) {
  return from ? load(from + offset, count) : Vec{};
}

inline void clear(Vec* v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = Vec{};
}

inline void copy(Vec* to, const Vec* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Convert (count, N) in memory, one row per channel, to N vectors with one lane per channel, and back.
inline void load_rows(Vec* to, const float* from, int64_t N, int count) {
  for (int64_t n = 0; n < N; ++n) {
    to[n] = Vec{};
    for (int i = 0; from && i < count; ++i) to[n][i] = from[i * N + n];
  }
}

inline void store_rows(float* to, const Vec* from, int64_t N, int count) {
  for (int64_t n = 0; to && n < N; ++n)
    for (int i = 0; i < count; ++i) to[i * N + n] = from[n][i];
}

// Bit i is set if lane i is larger, not for NaN.
inline uint32_t lanes_above(Vec x, float least) {
#if KERNEL_LANES == 16
  return _mm512_cmp_ps_mask(__m512(x), __m512(all(least)), _CMP_GT_OQ);
#elif KERNEL_LANES == 8
  return _mm256_movemask_ps(__m256(Vec(x > all(least))));
#else
  const Bits above = x > all(least);
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= static_cast<uint32_t>(above[i] & 1) << i;
  return bits;
#endif
}

// The order of the operands lets a NaN through.
inline Vec clamp(Vec x, float low, float high) {
  x = all(low) > x ? all(low) : x;
  return all(high) < x ? all(high) : x;
}

// 1.5 * 2^23 + 127: adding it rounds to an integer k, and leaves the exponent of 2^k in the low bits.
constexpr float ROUND = 12582912.f + 127.f;

inline Vec power_of_two(Vec k_plus_round) {
  Bits bits;
  std::memcpy(&bits, &k_plus_round, sizeof bits);
  bits <<= 23;
  Vec scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// 2^x to about 1 ulp, exactly 1 at 0; 0 below 2^-126, infinity from 2^128 on.
#if KERNEL_LANES == 16
inline Vec exp2(Vec x) {
  const Vec r = Vec(_mm512_reduce_ps(__m512(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  Vec p = r * all(2.161291486e-04f) + all(1.246784697e-03f);
  p = p * r + all(9.675451554e-03f);
  p = p * r + all(5.548528209e-02f);
  p = p * r + all(2.402293086e-01f);
  p = p * r + all(6.931470633e-01f);
  p = p * r + all(1.f);
  const __mmask16 normal = _mm512_cmp_ps_mask(__m512(x), __m512(all(-126.f)), _CMP_NLT_UQ);  // or NaN
  return Vec(_mm512_maskz_scalef_ps(normal, __m512(p), __m512(x)));
}
#else
inline Vec exp2(Vec x) {
  x = clamp(x, -127.f, 128.f);
  const Vec k = x + all(ROUND), r = x - (k - all(ROUND));
  Vec p = r * all(1.545316336e-04f) + all(1.339086331e-03f);
  p = p * r + all(9.618083015e-03f);
  p = p * r + all(5.550356954e-02f);
  p = p * r + all(2.402265072e-01f);
  p = p * r + all(6.931471825e-01f);
  p = p * r + all(1.f);
  return p * power_of_two(k);
}
#endif

// e^x with the same properties. ln 2 is split in two (Cody and Waite), which keeps large |x| accurate.
inline Vec exp(Vec x) {
  x = clamp(x, -88.02f, 88.72f);
  const Vec k = x * all(1.44269504f) + all(ROUND), whole = k - all(ROUND);
  const Vec r = x - whole * all(0.693359375f) + whole * all(2.12194440e-4f);
  Vec p = r * all(1.9875691500e-4f) + all(1.3981999507e-3f);
  p = p * r + all(8.3334519073e-3f);
  p = p * r + all(4.1665795894e-2f);
  p = p * r + all(1.6666665459e-1f);
  p = p * r + all(5.0000001201e-1f);
  p = p * r * r + r + all(1.f);
  return p * power_of_two(k);
}

// log(1 + y) for y in [0, 1], to about 1 ulp: y times a polynomial of least relative error.
inline Vec log1p(Vec y) {
  Vec p = y * all(-3.318474628e-03f) + all(2.020459436e-02f);
  p = p * y + all(-5.766446143e-02f);
  p = p * y + all(1.068055704e-01f);
  p = p * y + all(-1.535539776e-01f);
  p = p * y + all(1.969540119e-01f);
  p = p * y + all(-2.495858818e-01f);
  p = p * y + all(3.333051205e-01f);
  p = p * y + all(-4.999993145e-01f);
  p = p * y + all(1.f);
  return p * y;
}

inline Vec sigmoid(Vec x) { return all(1.f) / (all(1.f) + exp(-x)); }

inline float lanes_sum(Vec v) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += v[i];
  return sum;
}

template <int HALF, int... LANE>
inline Vec fold(Vec a, Vec b, std::integer_sequence<int, LANE...>) {
#ifdef __clang__
  const Vec own = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + LANE : LANE)...);
  const Vec other = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + (LANE ^ HALF) : LANE ^ HALF)...);
#else
  const Vec own = __builtin_shuffle(a, b, Bits{(LANE & HALF ? LANES + LANE : LANE)...});
  const Vec other = __builtin_shuffle(a, b, Bits{(LANE & HALF ? LANES + (LANE ^ HALF) : LANE ^ HALF)...});
#endif
  return own + other;
}

// Lane i of the result is the sum over the lanes of v[i]; v is overwritten.
template <int HALF = LANES / 2>
inline Vec sums_of(Vec* v) {
  for (int i = 0; i < HALF; ++i) v[i] = fold<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, LANES>{});
  if constexpr (HALF > 1) return sums_of<HALF / 2>(v);
  return v[0];
}

template <int HALF, int... LANE>
inline void swap_lanes(Vec& a, Vec& b, std::integer_sequence<int, LANE...>) {
#ifdef __clang__
  const Vec first = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + (LANE ^ HALF) : LANE)...);
  b = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + LANE : LANE ^ HALF)...);
#else
  const Vec first = __builtin_shuffle(a, b, Bits{(LANE & HALF ? LANES + (LANE ^ HALF) : LANE)...});
  b = __builtin_shuffle(a, b, Bits{(LANE & HALF ? LANES + LANE : LANE ^ HALF)...});
#endif
  a = first;
}

// Lane j of v[i] becomes lane i of v[j].
template <int HALF = LANES / 2>
inline void transpose_lanes(Vec* v) {
  for (int i = 0; i < LANES; ++i)
    if (!(i & HALF)) swap_lanes<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, LANES>{});
  if constexpr (HALF > 1) transpose_lanes<HALF / 2>(v);
}
