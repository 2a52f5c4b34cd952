// linear in plain scalar code.
#pragma once
#include <cstdint>
#include <vector>

namespace krait::ops::reference {

// y (M, N) = x (M, K) wᵀ (N, K) + bias (N) + stream (M, N); the last two may be empty.
template <class T>
std::vector<T> linear(const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& bias,
                      const std::vector<T>& stream, int64_t M, int64_t N, int64_t K) {
  std::vector<T> y(static_cast<size_t>(M * N));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      T sum = 0;
      for (int64_t k = 0; k < K; ++k)
        sum += x[static_cast<size_t>(m * K + k)] * w[static_cast<size_t>(n * K + k)];
      if (!bias.empty()) sum += bias[static_cast<size_t>(n)];
      if (!stream.empty()) sum += stream[static_cast<size_t>(m * N + n)];
      y[static_cast<size_t>(m * N + n)] = sum;
    }
  return y;
}

template <class T>
struct LinearGradients {
  std::vector<T> x, w, bias;
};

template <class T>
LinearGradients<T> linear_backward(const std::vector<T>& x, const std::vector<T>& w,
                                   const std::vector<T>& dy, int64_t M, int64_t N, int64_t K) {
  LinearGradients<T> d{std::vector<T>(x.size()), std::vector<T>(w.size()),
                       std::vector<T>(static_cast<size_t>(N))};
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      const T g = dy[static_cast<size_t>(m * N + n)];
      d.bias[static_cast<size_t>(n)] += g;
      for (int64_t k = 0; k < K; ++k) {
        const auto xi = static_cast<size_t>(m * K + k), wi = static_cast<size_t>(n * K + k);
        d.x[xi] += g * w[wi];
        d.w[wi] += g * x[xi];
      }
    }
  return d;
}

}  // namespace krait::ops::reference
