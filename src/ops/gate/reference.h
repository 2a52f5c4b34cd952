// gate as its formulas read, on double, float and (slopes by the complex step) std::complex<double>. For tests
// only.
#pragma once
#include <cmath>
#include <complex>

#include "krait/ops/gate/gate.h"

namespace krait::ops {

// The normal distribution, and its continuation to x + ih for a vanishing h.
inline double normal_distribution(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }
inline float normal_distribution(float x) { return std::erfc(-x / std::sqrt(2.0f)) / 2; }
inline std::complex<double> normal_distribution(const std::complex<double>& x) {
  const double density = std::exp(-x.real() * x.real() / 2) / std::sqrt(2 * M_PI);
  return {normal_distribution(x.real()), x.imag() * density};
}

inline double above_zero(double x) { return x > 0 ? x : 0; }
inline float above_zero(float x) { return x > 0 ? x : 0; }
inline std::complex<double> above_zero(const std::complex<double>& x) {
  return x.real() > 0 ? x : 0;
}

template <class T>
T gate_reference(Gate kind, const T& g) {
  switch (kind) {
    case Gate::silu: return g / (T(1) + std::exp(-g));
    case Gate::sigmoid: return T(1) / (T(1) + std::exp(-g));
    case Gate::gelu: return g * normal_distribution(g);
    case Gate::gelu_tanh:
      return g / T(2) * (T(1) + std::tanh(T(std::sqrt(2 / M_PI)) * (g + T(0.044715) * g * g * g)));
    case Gate::relu: return above_zero(g);
    case Gate::relu2: return above_zero(g) * above_zero(g);
  }
  return T(0);
}

}  // namespace krait::ops
