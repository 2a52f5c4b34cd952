// The plain definition of conv1d_causal, for tests: double is the oracle, std::complex<double> gives
// gradients by the complex step, float the error of a naive run.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

// Tokens [begin, end) from state row `in` to state row `out` (-1: none).
struct ConvSequence {
  int64_t begin = 0, end = 0, in = -1, out = -1;
};

// x (tokens, E), k (E, W), bias (E) or empty, state_in (S, E, K) or empty. Returns y; writes the rows of
// state_out (S, E, K) that sequences name, where it is not empty.
template <class T>
std::vector<T> conv1d_causal_reference(int64_t E, int64_t W, int64_t K, bool silu,
                                       const std::vector<ConvSequence>& sequences,
                                       const std::vector<T>& x, const std::vector<T>& k,
                                       const std::vector<T>& bias, const std::vector<T>& state_in,
                                       std::vector<T>& state_out) {
  std::vector<T> y(x.size());
  for (const ConvSequence& s : sequences) {
    for (int64_t e = 0; e < E; ++e) {
      // The input at any time of the sequence; before it, its state; before that, zero.
      const auto input = [&](int64_t t) -> T {
        if (t >= s.begin) return x[static_cast<size_t>(t * E + e)];
        const int64_t column = K + t - s.begin;
        if (state_in.empty() || s.in < 0 || column < 0) return T(0);
        return state_in[static_cast<size_t>((s.in * E + e) * K + column)];
      };
      for (int64_t t = s.begin; t < s.end; ++t) {
        T sum = bias.empty() ? T(0) : bias[static_cast<size_t>(e)];
        for (int64_t w = 0; w < W; ++w)
          sum += k[static_cast<size_t>(e * W + w)] * input(t - (W - 1 - w));
        y[static_cast<size_t>(t * E + e)] = silu ? sum / (T(1) + std::exp(-sum)) : sum;
      }
      if (state_out.empty() || s.out < 0) continue;
      for (int64_t j = 0; j < K; ++j)
        state_out[static_cast<size_t>((s.out * E + e) * K + j)] = input(s.end - K + j);
    }
  }
  return y;
}

}  // namespace krait::ops
