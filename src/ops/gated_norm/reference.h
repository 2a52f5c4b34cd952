// The plain definition of gated_norm, for tests: double is the oracle, std::complex<double> gives gradients
// by the complex step, float the error of a naive run.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

// x, z (rows, E), w, b (E); z and b may be empty.
template <class T>
std::vector<T> gated_norm_reference(int64_t E, int64_t groups, bool gate_first, double eps,
                                    const std::vector<T>& x, const std::vector<T>& z,
                                    const std::vector<T>& w, const std::vector<T>& b) {
  std::vector<T> y(x.size());
  const auto n = static_cast<size_t>(E / groups);
  const auto gate = [&](size_t i) { return z.empty() ? T(1) : z[i] / (T(1) + std::exp(-z[i])); };
  for (size_t first = 0; first + n <= x.size() && n > 0; first += n) {
    T square = 0;
    const auto v = [&](size_t i) { return gate_first ? x[i] * gate(i) : x[i]; };
    for (size_t i = first; i < first + n; ++i) square += v(i) * v(i);
    const T scale = T(1) / std::sqrt(square / T(static_cast<double>(n)) + T(eps));
    for (size_t i = first; i < first + n; ++i) {
      const size_t e = i % static_cast<size_t>(E);
      y[i] = v(i) * scale * w[e] + (b.empty() ? T(0) : b[e]);
      if (!gate_first) y[i] *= gate(i);
    }
  }
  return y;
}

}  // namespace krait::ops
