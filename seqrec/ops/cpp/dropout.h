// Dropout of independent elements. Part of kernels.cpp.

// Elements that share a row of random numbers, and that one thread takes at a time.
constexpr int64_t ROW = 4096;

void dropout_task(const DropoutProblem& p, int64_t task, Vec*) {
  const int64_t begin = task * ROW, count = std::min(ROW, p.count - begin);
  const uint64_t key = row_key(*p.seed, task);
  const Words first = Words{} + static_cast<uint32_t>(key), second = Words{} + static_cast<uint32_t>(key >> 32);
  const int32_t threshold = static_cast<int32_t>(p.threshold);
  const Vec scale = all(65536.f / static_cast<float>(65536 - p.threshold));
  const float* x = p.x + begin;
  float* y = p.y + begin;
  for (int64_t at = 0; at < count; at += DRAWN) {
    for (int64_t word = 0; word < WORDS; word += LANES) {
      const Words words = random_words(lane_numbers() + static_cast<uint32_t>(at / 2 + word), first, second);
      const int64_t low = at + word, high = low + WORDS;
      if (high + LANES <= count) {
        store(y + low, where(low_kept(words, threshold), load(x + low) * scale));
        store(y + high, where(high_kept(words, threshold), load(x + high) * scale));
        continue;
      }
      const int some = static_cast<int>(std::clamp<int64_t>(count - low, 0, LANES));
      const int more = static_cast<int>(std::clamp<int64_t>(count - high, 0, LANES));
      store(y + low, where(low_kept(words, threshold), load(x + low, some) * scale), some);
      store(y + high, where(high_kept(words, threshold), load(x + high, more) * scale), more);
    }
  }
}
