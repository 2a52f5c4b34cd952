// mamba3_steps as its formulas read, on any number type. The op computes with it in float, its tests in double
// and, by the complex step, its gradients.
#pragma once
#include <cmath>
#include <complex>

#include "krait/ops/mamba3_steps/mamba3_steps.h"

namespace krait::ops::mamba3_steps_reference {

inline double real(const std::complex<double>& x) { return x.real(); }
template <class F>
F real(F x) {
  return x;
}

template <class T>
T softplus(const T& x) {
  if (real(x) > 20) return x;
  if constexpr (std::is_floating_point_v<T>) {
    return std::log1p(std::exp(x));
  } else {
    return std::log(1.0 + std::exp(x));
  }
}

// A
template <class T>
T decay_rate(const T& x, float floor, DecayKind kind) {
  T f = softplus(x);
  if (kind == DecayKind::heavy_tailed) f = real(x) >= 0 ? T(1) + x : T(1) / (T(1) - x);
  return real(f) > floor ? -f : T(-floor);
}

}  // namespace krait::ops::mamba3_steps_reference
