// The input vectors of events: sums of rows of tables, by given codes or by those of the events' times. Part of
// kernels.cpp.

// Events that one thread takes at a time.
constexpr int64_t EVENTS = 256;

// How many ticks of `size` fit into time modulo `size * count`, rounded down. Sums of times wrap around, as in torch.
inline int64_t part_of_cycle(int64_t time, int64_t shift, int64_t size, int64_t count) {
  const int64_t shifted = static_cast<int64_t>(static_cast<uint64_t>(time) + static_cast<uint64_t>(shift));
  const int64_t rest = shifted % (size * count);
  return (rest < 0 ? rest + size * count : rest) / size;
}

inline int64_t gap_code(const EventInputProblem& p, int64_t i) {
  if (p.before[i] == p.no_time) return 0;
  const int64_t gap = static_cast<int64_t>(static_cast<uint64_t>(p.times[i]) - static_cast<uint64_t>(p.before[i]));
  return 1 + (std::upper_bound(p.boundary, p.boundary + p.boundaries, gap) - p.boundary);
}

inline int64_t code_of(const EventInputProblem& p, const TableRows& part, int64_t i) {
  const int64_t hour = 3600 * p.second, day = 24 * hour;
  switch (part.time) {
    case 1: return gap_code(p, i);
    case 2: return part_of_cycle(p.times[i], p.offset, hour, 24);
    // 1970 began on a Thursday; Monday is 0.
    case 3: return part_of_cycle(p.times[i], p.offset + 3 * day, day, 7);
    default: return part.codes[i];
  }
}

// Return the first table of which a given code is no row, or -1.
int64_t table_without_row(const EventInputProblem& p) {
  for (int64_t t = 0; t < p.tables; ++t) {
    const TableRows& part = p.parts[t];
    if (part.time) continue;
    for (int64_t i = 0; i < p.events; ++i)
      if (part.codes[i] < part.least || part.codes[i] >= part.rows) return t;
  }
  return -1;
}

void event_input_task(const EventInputProblem& p, int64_t task, Vec*) {
  const int64_t last = std::min(p.events, (task + 1) * EVENTS);
  for (int64_t i = task * EVENTS; i < last; ++i)
    for (int64_t t = 0; t < p.tables; ++t) {
      const TableRows& part = p.parts[t];
      const float* row = part.table + code_of(p, part, i) * part.stride;
      const Vec scale = all(static_cast<float>(part.scale));
      float* out = p.out + i * p.width;
      for (int64_t d = 0; d < p.width; d += LANES) {
        const int some = static_cast<int>(std::min<int64_t>(LANES, p.width - d));
        const Vec scaled = scale * load(row + d, some);
        store(out + d, t ? load(out + d, some) + scaled : scaled, some);
      }
    }
}
