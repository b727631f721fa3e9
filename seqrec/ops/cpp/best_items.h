// The best items of each user. Items are scored a block at a time, and only scores that may be among the K best are
// kept, so the scores of the catalogue are never written. Letters as in problems.h; part of kernels.cpp.

constexpr int64_t ITEMS = 256;    // scored at a time, a multiple of CHECKED
constexpr int64_t CHECKED = 64;   // scores that are compared with the K-th best together
constexpr int64_t USERS = 32;     // most users of a task
constexpr int GROUP = LANES / 4;  // users that are scored together, against 4 items at a time

// Room for a user's candidates: a selection leaves K of them.
inline int64_t best_items_room(const BestItemsProblem& p) { return std::max(2 * p.k, p.k + 4 * CHECKED); }

// Larger keys are better: a higher score, then a smaller row.
inline uint64_t key_of(float score, int64_t row) {
  uint32_t bits;
  score += 0.f;  // -0 is 0
  std::memcpy(&bits, &score, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(row));
}

inline float score_of(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits = bits >> 31 ? bits ^ 0x80000000u : ~bits;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// A user's candidates.
struct Candidates {
  uint64_t* keys;
  int64_t count;
  float least;  // lower scores, and as high ones of later items, are not among the K best
  const int64_t *excluded, *end;

  // Keep the K best in any order, and at most `spare` more.
  void select(int64_t k, int64_t spare) {
    int64_t begin = 0, end = count;  // the first `begin` are among the K best, and those from `end` on are not
    for (int rounds = 0; end - k > spare && end - begin > 8 && rounds < 64; ++rounds) {
      const uint64_t a = keys[begin], b = keys[(begin + end) / 2], c = keys[end - 1];
      const uint64_t middle = std::max(std::min(a, b), std::min(std::max(a, b), c));
      int64_t larger = begin;  // keys differ, so this is neither none nor all of them
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t key = keys[i];
        keys[i] = keys[larger];
        keys[larger] = key;
        larger += key > middle;  // without a branch, which would be guessed wrongly every other time
      }
      (larger < k ? begin : end) = larger;
    }
    if (end - k > spare) {
      std::nth_element(keys + begin, keys + k - 1, keys + end, std::greater<uint64_t>());
      end = k;
    }
    count = end;
    least = score_of(*std::min_element(keys, keys + end));
  }
};

// Row of the table at a place of those that are scored.
inline int64_t row_at(const BestItemsProblem& p, int64_t place) { return p.chosen ? p.chosen[place] : place; }

// Scores of N users for `count` rows from `first` on, (N, ITEMS). Missing users repeat the last one.
template <int N>
void score_items(const BestItemsProblem& p, int64_t user, int users, int64_t first, int64_t count, float* scores) {
  const int64_t D = p.width, whole = D / LANES * LANES;
  const int rest = static_cast<int>(D - whole);
  constexpr int AT_ONCE = LANES / N;
  const float* states[N];
  for (int k = 0; k < N; ++k) states[k] = p.states + (user + std::min(k, users - 1)) * D;
  for (int64_t item = 0; item < count; item += AT_ONCE) {
    const float* rows[AT_ONCE];
    for (int j = 0; j < AT_ONCE; ++j) rows[j] = p.vectors + row_at(p, first + std::min(item + j, count - 1)) * D;
    Vec sums[LANES]{};
    const auto add = [&](int64_t d, int some) {
      Vec row[AT_ONCE];
      for (int j = 0; j < AT_ONCE; ++j) row[j] = load(rows[j] + d, some);
      for (int k = 0; k < N; ++k) {
        const Vec state = load(states[k] + d, some);
        for (int j = 0; j < AT_ONCE; ++j) sums[AT_ONCE * k + j] += state * row[j];
      }
    };
    for (int64_t d = 0; d < whole; d += LANES) add(d, LANES);
    if (rest) add(whole, rest);
    const Vec found = sums_of(sums);
    for (int k = 0; k < N; ++k)
      std::memcpy(scores + k * ITEMS + item, reinterpret_cast<const char*>(&found) + 4 * AT_ONCE * k, 4 * AT_ONCE);
  }
}

// Leave out the rows from `from` to `to`, which are ascending, below `stop`; returns the next one.
inline const int64_t* leave_out(float* scores, int64_t first, int64_t stop, const int64_t* from, const int64_t* to) {
  for (; from < to && *from < stop; ++from)
    if (*from >= first) scores[*from - first] = -INFINITY;
  return from;
}

// Keep the scores above the user's least, of `count` rows from `first` on; the others up to ITEMS are -inf.
inline void keep_best(const BestItemsProblem& p, const float* scores, int64_t first, int64_t count, Candidates& best) {
  for (int64_t at = 0; at < count; at += CHECKED) {
    Bits above{};
    for (int64_t i = at; i < at + CHECKED; i += LANES) above |= load(scores + i) > all(best.least);
    uint64_t any = 0, parts[sizeof above / 8];
    std::memcpy(parts, &above, sizeof above);
    for (uint64_t part : parts) any |= part;
    if (!any) continue;
    if (best.count + CHECKED > best_items_room(p)) best.select(p.k, CHECKED);
    for (int64_t i = at; i < at + CHECKED; i += LANES)
      for (uint32_t above = lanes_above(load(scores + i), best.least); above; above &= above - 1) {
        const int64_t found = i + __builtin_ctz(above);
        best.keys[best.count++] = key_of(scores[found], first + found);
      }
  }
}

int64_t best_items_scratch(const BestItemsProblem& p) {
  const int64_t bytes = GROUP * ITEMS * sizeof(float) + p.tile * best_items_room(p) * sizeof(uint64_t);
  return (bytes + sizeof(Vec) - 1) / sizeof(Vec);
}

void best_items_task(const BestItemsProblem& p, int64_t task, Vec* scratch) {
  const int64_t begin = task * p.tile, end = std::min(p.users, begin + p.tile);
  float* scores = reinterpret_cast<float*>(scratch);
  uint64_t* keys = reinterpret_cast<uint64_t*>(scores + GROUP * ITEMS);
  Candidates best[USERS];
  for (int64_t user = begin; user < end; ++user) {
    const int64_t *from = p.excluded ? p.excluded + p.offsets[user] : nullptr,
                  *to = p.excluded ? p.excluded + p.offsets[user + 1] : nullptr;
    best[user - begin] = {keys + (user - begin) * best_items_room(p), 0, -INFINITY, from, to};
  }
  const int64_t *blocked = p.blocked, *blocked_end = p.blocked + p.num_blocked;
  for (int64_t first = p.first; first < p.rows; first += ITEMS) {
    const int64_t count = std::min(ITEMS, p.rows - first), stop = first + count;
    for (int64_t user = begin; user < end; user += GROUP) {
      const int users = static_cast<int>(std::min<int64_t>(GROUP, end - user));
      (users == 1 ? score_items<1> : score_items<GROUP>)(p, user, users, first, count, scores);
      for (int k = 0; k < users; ++k) {
        Candidates& own = best[user - begin + k];
        float* of_user = scores + k * ITEMS;
        std::fill(of_user + count, of_user + ITEMS, -INFINITY);
        own.excluded = leave_out(of_user, first, stop, own.excluded, own.end);
        leave_out(of_user, first, stop, blocked, blocked_end);
        keep_best(p, of_user, first, count, own);
      }
    }
    while (blocked < blocked_end && *blocked < stop) ++blocked;
  }
  for (int64_t user = begin; user < end; ++user) {
    Candidates& own = best[user - begin];
    if (own.count > p.k) own.select(p.k, 0);
    std::sort(own.keys, own.keys + own.count, std::greater<uint64_t>());
    for (int64_t k = 0; k < p.k; ++k) {
      const bool found = k < own.count;
      p.scores[user * p.k + k] = found ? score_of(own.keys[k]) : -INFINITY;
      p.item_ids[user * p.k + k] = found ? row_at(p, 0xffffffffu - static_cast<uint32_t>(own.keys[k])) : 0;
    }
  }
}
