// The plain definition of glu, for tests: rows of a and b side by side.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

template <class T>
std::vector<T> glu_reference(int64_t H, const std::vector<T>& x) {
  std::vector<T> y(x.size() / 2);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t at =
        i / static_cast<size_t>(H) * 2 * static_cast<size_t>(H) + i % static_cast<size_t>(H);
    y[i] = x[at] / (T(1) + std::exp(-x[at + static_cast<size_t>(H)]));
  }
  return y;
}

}  // namespace krait::ops
