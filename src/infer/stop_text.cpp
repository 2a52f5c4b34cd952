#include "krait/infer/stop_text.h"

#include <algorithm>
#include <utility>

namespace krait {

std::string StopText::push(std::string_view piece) {
  if (found_) return "";
  held_ += piece;
  size_t first = std::string::npos, may_begin = held_.size();
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    // The longest end of what is held that may be the beginning of this stop.
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > 0; --n)
      if (held_.ends_with(std::string_view(stop).substr(0, n))) {
        may_begin = std::min(may_begin, held_.size() - n);
        break;
      }
  }
  found_ = first != std::string::npos;
  std::string shown = held_.substr(0, found_ ? first : may_begin);
  held_.erase(0, found_ ? std::string::npos : may_begin);
  return shown;
}

std::string StopText::finish() { return std::exchange(held_, ""); }

}  // namespace krait
