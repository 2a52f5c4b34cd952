#include "krait/infer/memory.h"

#include "krait/base/error.h"
#include "krait/tensor/device.h"

namespace krait {

void require_memory(size_t bytes, const std::string& what, Device device) {
  const size_t free = free_memory(device);
  require(bytes <= free, "{}: {} in all, but only {} of memory are free; ask for less at once",
          what, bytes_text(bytes), bytes_text(free));
}

std::string bytes_text(size_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b < 1e6) return fmt::format("{:.1f} kB", b / 1e3);
  if (b < 1e9) return fmt::format("{:.1f} MB", b / 1e6);
  return fmt::format("{:.2f} GB", b / 1e9);
}

}  // namespace krait
