// Random numbers from a counter: number j of row i of a seed is a function of the three alone. A backward pass draws
// again what forward drew, and neither threads nor vector widths change a number. `seqrec/ops/random.py` repeats this.

typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

// Columns [32 n, 32 n + 32) of a row have 16 words: the low halves are the first 16 numbers, the high halves the others.
constexpr int64_t DRAWN = 32, WORDS = 16;

// SplitMix64's finaliser (Steele, Lea & Flood 2014).
inline uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t row_key(int64_t seed, int64_t row) {
  return mixed(mixed(static_cast<uint64_t>(seed)) + static_cast<uint64_t>(row));
}

// A hash of 32 bits with two multiplications (Wellons' lowbias32), and a second key between them.
inline Words random_words(Words counter, Words first_key, Words second_key) {
  Words h = counter * 0x9E3779B1u + first_key;
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= (h >> 15) ^ second_key;
  h *= 0x846CA68Bu;
  return h ^ (h >> 16);
}

inline Words lane_numbers() {
  Words lanes{};
  for (int i = 0; i < LANES; ++i) lanes[i] = static_cast<uint32_t>(i);
  return lanes;
}

// Bits of a vector where the numbers of 16 bits are at least the threshold: the kept ones.
inline Bits low_kept(Words words, int32_t threshold) { return Bits(words & 0xFFFFu) >= Bits{} + threshold; }

inline Bits high_kept(Words words, int32_t threshold) { return Bits(words >> 16) >= Bits{} + threshold; }

inline Vec where(Bits kept, Vec v) { return Vec(Bits(v) & kept); }
