#include "krait/tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "krait/base/error.h"

namespace krait {

// Addresses of a planning arena start here: never mapped, so touching one faults at once.
static std::byte* const kPlanBase = reinterpret_cast<std::byte*>(uintptr_t{1} << 46);

Arena::Arena() : base_(kPlanBase), capacity_(size_t{1} << 45), planning_(true) {}

Arena::Arena(size_t bytes) : capacity_((bytes + kAlign - 1) / kAlign * kAlign) {
  if (capacity_ == 0) return;
  void* p = ::mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(p != MAP_FAILED, "cannot reserve {} bytes of working memory: {}", capacity_, std::strerror(errno));
  ::madvise(p, capacity_, MADV_HUGEPAGE);
  base_ = static_cast<std::byte*>(p);
}

Arena::Arena(Arena&& o) noexcept
    : base_(std::exchange(o.base_, nullptr)),
      capacity_(std::exchange(o.capacity_, 0)),
      low_(std::exchange(o.low_, 0)),
      high_(std::exchange(o.high_, 0)),
      peak_(std::exchange(o.peak_, 0)),
      planning_(o.planning_) {}

Arena& Arena::operator=(Arena&& o) noexcept {
  std::swap(base_, o.base_);
  std::swap(capacity_, o.capacity_);
  std::swap(low_, o.low_);
  std::swap(high_, o.high_);
  std::swap(peak_, o.peak_);
  std::swap(planning_, o.planning_);
  return *this;
}

Arena::~Arena() {
  if (base_ && !planning_) ::munmap(base_, capacity_);
}

size_t Arena::grow(size_t& end, size_t bytes) {
  const size_t before = end;
  const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  require(rounded >= bytes && rounded <= capacity_ - low_ - high_,
          "working memory exhausted: {} bytes wanted, {} of {} in use", bytes, low_ + high_, capacity_);
  end += rounded;
  peak_ = std::max(peak_, low_ + high_);
  return before;
}

void* Arena::take_low(size_t bytes) { return base_ + grow(low_, bytes); }

void* Arena::take_high(size_t bytes) {
  grow(high_, bytes);
  return base_ + (capacity_ - high_);
}

}  // namespace krait
