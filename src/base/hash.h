// Tells things apart that are not the same by accident; no protection against anyone.
#pragma once
#include <cstddef>
#include <cstdint>

namespace krait {

// FNV-1a, 64 bits.
struct Hash {
  uint64_t h = 0xcbf29ce484222325ull;

  void add(const void* p, size_t n) {
    for (size_t i = 0; i < n; ++i) add_word(static_cast<const uint8_t*>(p)[i]);
  }
  // A round for a whole word: any other word gives another result.
  void add_word(uint64_t word) { h = (h ^ word) * 0x100000001b3ull; }
};

}  // namespace krait
