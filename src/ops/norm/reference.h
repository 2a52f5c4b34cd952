// The plain definition of norm, for tests: double is the oracle, std::complex<double> gives gradients by
// the complex step, float the error of a naive run.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

// s (rows, D) is what is normed: x, or x + residual. w, b: (D) or empty.
template <class T>
std::vector<T> norm_reference(bool layer, int64_t D, double eps, const std::vector<T>& s,
                              const std::vector<T>& w, const std::vector<T>& b) {
  std::vector<T> y(s.size());
  const auto n = static_cast<size_t>(D);
  for (size_t row = 0; row + n <= s.size() && n > 0; row += n) {
    T mean = 0, square = 0;
    for (size_t i = 0; i < n && layer; ++i) mean += s[row + i];
    mean /= T(static_cast<double>(D));
    for (size_t i = 0; i < n; ++i) square += (s[row + i] - mean) * (s[row + i] - mean);
    const T scale = T(1) / std::sqrt(square / T(static_cast<double>(D)) + T(eps));
    for (size_t i = 0; i < n; ++i) {
      y[row + i] =
          (s[row + i] - mean) * scale * (w.empty() ? T(1) : w[i]) + (b.empty() ? T(0) : b[i]);
    }
  }
  return y;
}

}  // namespace krait::ops
