// mamba1_step in plain scalar code.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace krait::ops::reference {

template <class T>
struct Mamba1Values {
  std::vector<T> norm, in_proj, conv, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj;
  std::vector<T> stream, conv_state, ssm_state;
  int64_t B, width, E, N, R, W;  // width: D
  T eps;
};

// y (rows) = w (rows, K) x
template <class T>
std::vector<T> times(const std::vector<T>& w, const std::vector<T>& x) {
  std::vector<T> y(w.size() / x.size());
  for (size_t n = 0; n < y.size(); ++n)
    for (size_t k = 0; k < x.size(); ++k) y[n] += w[n * x.size() + k] * x[k];
  return y;
}

// The next stream, conv_state and ssm_state, one behind the other. round: what storing an activation does.
template <class T, class Round>
std::vector<T> mamba1_step(Mamba1Values<T> v, const Round& round) {
  const auto silu = [](T x) { return x / (1 + std::exp(-x)); };
  const auto rounded = [&](std::vector<T> x) {
    for (T& e : x) e = round(e);
    return x;
  };
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  for (int64_t b = 0; b < v.B; ++b) {
    std::vector<T> x(v.stream.begin() + b * v.width, v.stream.begin() + (b + 1) * v.width);
    T square = 0;
    for (const T e : x) square += e * e;
    for (size_t i = 0; i < x.size(); ++i)
      x[i] *= v.norm[i] / std::sqrt(square / static_cast<T>(v.width) + v.eps);
    const std::vector<T> xz = rounded(times(v.in_proj, rounded(x)));
    std::vector<T> u(at(v.E)), y(at(v.E));
    for (int64_t e = 0; e < v.E; ++e) {
      T* const inputs = &v.conv_state[at((b * v.E + e) * v.W)];
      for (int64_t w = 0; w + 1 < v.W; ++w) inputs[w] = inputs[w + 1];
      inputs[v.W - 1] = xz[at(e)];
      T sum = v.conv_bias.empty() ? 0 : v.conv_bias[at(e)];
      for (int64_t w = 0; w < v.W; ++w) sum += v.conv[at(e * v.W + w)] * inputs[w];
      u[at(e)] = round(silu(sum));
    }
    const std::vector<T> dt_B_C = times(v.x_proj, u);
    const std::vector<T> low = rounded({dt_B_C.begin(), dt_B_C.begin() + v.R});
    const std::vector<T> dt = rounded(times(v.dt_proj, low));
    for (int64_t e = 0; e < v.E; ++e) {
      const T pre = dt[at(e)] + v.dt_bias[at(e)];
      const T delta = pre > 20 ? pre : std::log1p(std::exp(pre));
      T sum = v.D[at(e)] * u[at(e)];
      for (int64_t n = 0; n < v.N; ++n) {
        T& h = v.ssm_state[at((b * v.E + e) * v.N + n)];
        h = std::exp(-delta * std::exp(v.A_log[at(e * v.N + n)])) * h +
            delta * dt_B_C[at(v.R + n)] * u[at(e)];
        sum += dt_B_C[at(v.R + v.N + n)] * h;
      }
      y[at(e)] = round(sum * silu(xz[at(v.E + e)]));
    }
    const std::vector<T> add = times(v.out_proj, y);
    for (int64_t d = 0; d < v.width; ++d) v.stream[at(b * v.width + d)] += add[at(d)];
  }
  std::vector<T> all = v.stream;
  all.insert(all.end(), v.conv_state.begin(), v.conv_state.end());
  all.insert(all.end(), v.ssm_state.begin(), v.ssm_state.end());
  return all;
}

}  // namespace krait::ops::reference
