// The plain definition of batch_norm, templated on the number type.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

// Of x (rows, D) over its rows; mean and biased var are handed out.
template <class T>
std::vector<T> batch_norm_reference(int64_t D, double eps, const std::vector<T>& x,
                                    const std::vector<T>& w, const std::vector<T>& b,
                                    std::vector<T>& mean, std::vector<T>& var) {
  const int64_t rows = static_cast<int64_t>(x.size()) / D;
  std::vector<T> y(x.size());
  mean.assign(static_cast<size_t>(D), T(0));
  var.assign(static_cast<size_t>(D), T(0));
  for (int64_t d = 0; d < D; ++d) {
    const auto at = [&](int64_t r) { return static_cast<size_t>(r * D + d); };
    const auto i = static_cast<size_t>(d);
    for (int64_t r = 0; r < rows; ++r) mean[i] += x[at(r)] / static_cast<T>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      const T off = x[at(r)] - mean[i];
      var[i] += off * off / static_cast<T>(rows);
    }
    for (int64_t r = 0; r < rows; ++r)
      y[at(r)] = (x[at(r)] - mean[i]) / std::sqrt(var[i] + static_cast<T>(eps)) * w[i] + b[i];
  }
  return y;
}

}  // namespace krait::ops
