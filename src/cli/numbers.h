// What options of real numbers accept. NaN is in no range.
#pragma once
#include <CLI/CLI.hpp>
#include <cmath>
#include <functional>

#include "krait/base/error.h"

namespace krait::cli {

// `expected` in words, as "a number above 0".
inline CLI::Validator number(const std::string& name, const std::string& expected,
                             const std::function<bool(double)>& right) {
  return {[=](const std::string& text) {
            double x = 0;
            const bool is_number = CLI::detail::lexical_cast(text, x);
            return is_number && right(x) ? "" : fmt::format("expected {}, got {}", expected, text);
          },
          name};
}

// From `least` to `most`, both included.
inline CLI::Validator number_in(double least, double most) {
  return number(fmt::format("in [{} - {}]", least, most),
                fmt::format("a number from {} to {}", least, most),
                [=](double x) { return x >= least && x <= most; });
}

// Above 0, at most 1; float32 that is nearest.
inline CLI::Validator share_above_zero() {
  return number("in (0 - 1]", "a number above 0, at most 1",
                [](double x) { return static_cast<float>(x) > 0 && x <= 1; });
}

inline CLI::Validator number_from_zero() {
  return number("NONNEGATIVE", "a number from 0 on",
                [](double x) { return x >= 0 && std::isfinite(x); });
}

inline CLI::Validator number_above_zero() {
  return number("POSITIVE", "a number above 0", [](double x) { return x > 0 && std::isfinite(x); });
}

}  // namespace krait::cli
