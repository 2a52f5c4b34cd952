// linear_cross_entropy in plain scalar code.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops::reference {

// nll (M) of h (M, D), w (V, D), targets (M). T may be complex: the largest logit's real part shifts.
template <class T>
std::vector<T> cross_entropy(const std::vector<T>& h, const std::vector<T>& w,
                             const std::vector<int32_t>& targets, int64_t V, int64_t D) {
  using std::exp, std::log, std::real;
  std::vector<T> nll(targets.size(), T(0));
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    std::vector<T> logits(static_cast<size_t>(V), T(0));
    for (size_t v = 0; v < logits.size(); ++v)
      for (size_t d = 0; d < static_cast<size_t>(D); ++d)
        logits[v] += h[i * static_cast<size_t>(D) + d] * w[v * static_cast<size_t>(D) + d];
    double most = real(logits[0]);
    for (const T& l : logits) most = std::max<double>(most, real(l));
    T sum = 0;
    for (const T& l : logits) sum += exp(l - static_cast<T>(most));
    nll[i] = log(sum) + static_cast<T>(most) - logits[static_cast<size_t>(targets[i])];
  }
  return nll;
}

}  // namespace krait::ops::reference
