#include "krait/base/system.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace krait {

namespace {

constexpr size_t kUnknown = std::numeric_limits<size_t>::max();

size_t number_in(const char* path) {
  std::ifstream in(path);
  size_t n = 0;
  return in >> n ? n : kUnknown;  // "max" means no limit
}

size_t meminfo_available() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  size_t kib = 0;
  while (in >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnknown;
}

size_t control_group_available() {
  const size_t limit = number_in("/sys/fs/cgroup/memory.max");
  const size_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  return limit - std::min(limit, used);
}

}  // namespace

size_t available_memory() { return std::min(meminfo_available(), control_group_available()); }

}  // namespace krait
