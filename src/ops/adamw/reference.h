// adamw in plain scalar code.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace krait::ops::reference {

template <class T>
struct AdamwState {
  std::vector<T> value, m, v;
  int64_t k = 0;  // steps taken
};

template <class T>
void adamw(AdamwState<T>& s, const std::vector<T>& grad, T clip, T lr, T beta1, T beta2, T eps,
           T decay) {
  ++s.k;
  const T bias1 = 1 - std::pow(beta1, static_cast<T>(s.k)),
          bias2 = 1 - std::pow(beta2, static_cast<T>(s.k));
  for (size_t i = 0; i < s.value.size(); ++i) {
    const T g = clip * grad[i];
    s.m[i] = beta1 * s.m[i] + (1 - beta1) * g;
    s.v[i] = beta2 * s.v[i] + (1 - beta2) * g * g;
    s.value[i] = s.value[i] - lr * decay * s.value[i] -
                 lr * (s.m[i] / bias1) / (std::sqrt(s.v[i] / bias2) + eps);
  }
}

}  // namespace krait::ops::reference
