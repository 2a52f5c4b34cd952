// A hash that tells things apart; it is no protection against anyone who wants two to look alike.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace krait {

// FNV-1a, 64 bits.
struct Hash {
  uint64_t h = 0xcbf29ce484222325ull;

  void add(const void* p, size_t n) {
    for (size_t i = 0; i < n; ++i) add_word(static_cast<const uint8_t*>(p)[i]);
  }
  // A round for a whole word: any other word gives another result.
  void add_word(uint64_t word) { h = (h ^ word) * 0x100000001b3ull; }
  // The same bytes eight at a time, the last ones with zeros behind them.
  void add_words(const void* p, size_t n) {
    const auto* from = static_cast<const char*>(p);
    for (; n > 0; n -= n < 8 ? n : 8, from += 8) {
      uint64_t word = 0;
      std::memcpy(&word, from, n < 8 ? n : 8);
      add_word(word);
    }
  }
};

}  // namespace krait
