// The plain definition of gelu, for tests: double is the oracle, float the error of a naive run.
#pragma once
#include <cmath>
#include <numbers>
#include <vector>

namespace krait::ops {

template <class T>
std::vector<T> gelu_reference(const std::vector<T>& x) {
  std::vector<T> y;
  for (const T v : x) y.push_back(v * (T(0.5) + T(0.5) * std::erf(v / std::numbers::sqrt2_v<T>)));
  return y;
}

template <class T>
std::vector<T> gelu_slope_reference(const std::vector<T>& x) {
  std::vector<T> y;
  for (const T v : x)
    y.push_back(T(0.5) + T(0.5) * std::erf(v / std::numbers::sqrt2_v<T>) +
                v * std::exp(v * v / T(-2)) / std::sqrt(2 * std::numbers::pi_v<T>));
  return y;
}

}  // namespace krait::ops
