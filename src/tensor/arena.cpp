#include "krait/tensor/arena.h"

#include <algorithm>
#include <utility>

#include "krait/base/error.h"

namespace krait {

// Addresses of a planning arena start here: never mapped, so touching one faults at once.
static std::byte* const kPlanBase = reinterpret_cast<std::byte*>(uintptr_t{1} << 62);

Arena Arena::planning() {
  Arena a;
  a.base_ = kPlanBase;
  a.capacity_ = size_t{1} << 61;
  a.planning_ = true;
  return a;
}

Arena::Arena(size_t bytes, Device device)
    : Arena(DeviceMemory(device, (bytes + kAlign - 1) / kAlign * kAlign)) {}

Arena::Arena(DeviceMemory memory)
    : memory_(std::move(memory)), base_(memory_.data()), capacity_(memory_.bytes()) {}

size_t Arena::grow(size_t& end, size_t bytes) {
  const size_t before = end;
  const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  const bool fits = rounded >= bytes && rounded <= capacity_ - low_ - high_;
  require(fits || !planning_, "this would take more than {} bytes of memory: ask for less at once",
          capacity_);
  require(fits, "working memory exhausted: {} bytes wanted, {} of {} in use", bytes, low_ + high_,
          capacity_);
  end += rounded;
  peak_ = std::max(peak_, low_ + high_);
  return before;
}

void* Arena::take_low(size_t bytes) { return base_ + grow(low_, bytes); }

void* Arena::take_high(size_t bytes) {
  grow(high_, bytes);
  return base_ + (capacity_ - high_);
}

bool Arena::taken_high_since(size_t mark, const void* p) const {
  const auto* const at = static_cast<const std::byte*>(p);
  return at >= base_ + (capacity_ - high_) && at < base_ + (capacity_ - mark);
}

}  // namespace krait
