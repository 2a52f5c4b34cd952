// The one exception of Krait, and the way to throw it.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace krait {

// Bad input or failed work. The message is complete: where, what was expected, what came, what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error with the formatted message unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(format, std::forward<Args>(args)...);
}

}  // namespace krait
