// mamba2_step in plain scalar code.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace krait::ops::reference {

template <class T>
struct Mamba2Values {
  std::vector<T> norm, in_proj, conv, conv_bias, dt_bias, A_log, D, gate_norm, out_proj;
  std::vector<T> stream, conv_state, ssm_state;
  int64_t B, width, H, P, N, W;  // width: D
  T eps, gate_eps, dt_min, dt_max;
};

// The next stream, conv_state and ssm_state, one behind the other. round: what storing an activation does.
template <class T, class Round>
std::vector<T> mamba2_step(Mamba2Values<T> v, const Round& round) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  const auto silu = [](T x) { return x / (1 + std::exp(-x)); };
  const auto row_times = [&](const std::vector<T>& w, int64_t n, const std::vector<T>& x) {
    T sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum += w[at(n) * x.size() + k] * x[k];
    return sum;
  };
  const auto scale_of = [](const std::vector<T>& x, T eps) {
    T square = 0;
    for (const T e : x) square += e * e;
    return 1 / std::sqrt(square / static_cast<T>(x.size()) + eps);
  };
  const int64_t E = v.H * v.P, C = E + 2 * v.N;
  for (int64_t b = 0; b < v.B; ++b) {
    T* const stream = &v.stream[at(b * v.width)];
    std::vector<T> x(stream, stream + v.width);
    const T scale = scale_of(x, v.eps);
    for (size_t i = 0; i < x.size(); ++i) x[i] = round(x[i] * scale * v.norm[i]);
    std::vector<T> xBC(at(C)), y(at(E));
    for (int64_t e = 0; e < C; ++e) {
      T* const inputs = &v.conv_state[at((b * C + e) * v.W)];
      for (int64_t w = 0; w + 1 < v.W; ++w) inputs[w] = inputs[w + 1];
      inputs[v.W - 1] = round(row_times(v.in_proj, E + e, x));
      T sum = v.conv_bias.empty() ? 0 : v.conv_bias[at(e)];
      for (int64_t w = 0; w < v.W; ++w) sum += v.conv[at(e * v.W + w)] * inputs[w];
      xBC[at(e)] = round(silu(sum));
    }
    for (int64_t e = 0; e < E; ++e) {
      const int64_t h = e / v.P;
      const T pre = round(row_times(v.in_proj, E + C + h, x)) + v.dt_bias[at(h)];
      T delta = pre > 20 ? pre : std::log1p(std::exp(pre));
      delta = delta < v.dt_min ? v.dt_min : delta > v.dt_max ? v.dt_max : delta;
      const T decay = std::exp(-delta * std::exp(v.A_log[at(h)]));
      T sum = v.D[at(v.D.size() == at(E) ? e : h)] * xBC[at(e)];
      for (int64_t n = 0; n < v.N; ++n) {
        T& s = v.ssm_state[at((b * E + e) * v.N + n)];
        s = decay * s + delta * xBC[at(e)] * xBC[at(E + n)];
        sum += s * xBC[at(E + v.N + n)];
      }
      y[at(e)] = round(sum) * silu(round(row_times(v.in_proj, e, x)));
    }
    const T gate_scale = scale_of(y, v.gate_eps);
    for (size_t e = 0; e < y.size(); ++e) y[e] = round(y[e] * gate_scale * v.gate_norm[e]);
    for (int64_t d = 0; d < v.width; ++d) stream[d] += row_times(v.out_proj, d, y);
  }
  std::vector<T> all = v.stream;
  all.insert(all.end(), v.conv_state.begin(), v.conv_state.end());
  all.insert(all.end(), v.ssm_state.begin(), v.ssm_state.end());
  return all;
}

}  // namespace krait::ops::reference
