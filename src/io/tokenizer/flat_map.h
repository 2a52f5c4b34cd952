// A hash map of 64-bit keys to 64-bit values in one block, for tables that are filled once and read
// millions of times a second.
#pragma once
#include <bit>
#include <cstdint>
#include <vector>

namespace krait {

class FlatMap {
 public:
  static constexpr uint64_t kNone = ~uint64_t{0};  // no key, and the value of an absent key

  explicit FlatMap(size_t expected = 0) { rehash(expected); }

  // Replaces the value of a key that is there. `key` is not kNone.
  void set(uint64_t key, uint64_t value) {
    if (2 * (size_ + 1) > slots_.size()) rehash(2 * size_ + 1);
    Slot& slot = slots_[find(key)];
    size_ += slot.key == kNone;
    slot = {key, value};
  }

  uint64_t get(uint64_t key) const { return slots_[find(key)].value; }
  size_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t key = kNone, value = kNone;
  };

  size_t find(uint64_t key) const {
    size_t i = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[i].key != key && slots_[i].key != kNone) i = (i + 1) & (slots_.size() - 1);
    return i;
  }

  void rehash(size_t expected) {
    std::vector<Slot> old(std::bit_ceil(2 * expected + 2));
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(slots_.size());
    for (const Slot& slot : old)
      if (slot.key != kNone) slots_[find(slot.key)] = slot;
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 63;
};

}  // namespace krait
