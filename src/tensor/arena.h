// The step arena: one block of memory with two stacks that grow towards each other. What must live
// until the step's backward pass (activations) is taken from the low end; what is needed for a moment
// (gradients of activations, scratch of an op) from the high end. Nothing is ever freed by itself:
// a stack is set back to an earlier mark. The same calls give the same addresses.
//
// A planning arena has no memory behind it: it hands out addresses that must not be touched and records
// how much was in use at most, so that the real one can be made exactly large enough.
#pragma once
#include <cstddef>
#include <cstdint>

#include "krait/tensor/device.h"

namespace krait {

class Arena {
 public:
  static constexpr size_t kAlign = 64;

  static Arena planning();
  explicit Arena(size_t bytes, Device device = {});
  explicit Arena(DeviceMemory memory);

  // Throws Error where the two ends would meet.
  void* take_low(size_t bytes);
  void* take_high(size_t bytes);

  // Marks are bytes in use at each end.
  size_t low() const { return low_; }
  size_t high() const { return high_; }
  void set_low(size_t mark) { low_ = mark; }
  void set_high(size_t mark) { high_ = mark; }
  void reset() { low_ = high_ = 0; }
  // Whether `p` was taken from the high end after it stood at `mark`.
  bool taken_high_since(size_t mark, const void* p) const;

  size_t capacity() const { return capacity_; }
  size_t peak() const { return peak_; }  // the most that was in use at once, both ends together
  bool is_planning() const { return planning_; }

 private:
  Arena() = default;
  size_t grow(size_t& end, size_t bytes);
  DeviceMemory memory_;
  std::byte* base_ = nullptr;
  size_t capacity_ = 0, low_ = 0, high_ = 0, peak_ = 0;
  bool planning_ = false;
};

}  // namespace krait
