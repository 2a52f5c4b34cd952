// The plain definition of s4_kernel, for tests, templated on the real number type: complex numbers are
// pairs of it, so that std::complex<double> gives gradients by the complex step.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <numbers>
#include <vector>

#include "krait/ops/s4_kernel/s4_kernel.h"

namespace krait::ops {

template <class T>
struct Pair {
  T re{}, im{};
  friend Pair operator+(Pair a, Pair b) { return {a.re + b.re, a.im + b.im}; }
  friend Pair operator-(Pair a, Pair b) { return {a.re - b.re, a.im - b.im}; }
  friend Pair operator*(Pair a, Pair b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  friend Pair operator/(Pair a, Pair b) {
    const T d = b.re * b.re + b.im * b.im;
    return {(a.re * b.re + a.im * b.im) / d, (a.im * b.re - a.re * b.im) / d};
  }
};
template <class T>
Pair<T> conj(Pair<T> a) {
  return {a.re, -a.im};
}
template <class T>
Pair<T> exp(Pair<T> a) {
  return {std::exp(a.re) * std::cos(a.im), std::exp(a.re) * std::sin(a.im)};
}

template <class T>
struct S4Values {
  std::vector<T> inv_dt, A_real, A_imag, B, C, P;  // B and P may be empty
};

struct S4Case {
  int64_t H = 1, S = 1, N = 1, channels = 1, L = 1;
  S4Options options = {};
};

// K (channels, H, L)
template <class T>
std::vector<T> s4_kernel_reference(const S4Case& k, const S4Values<T>& v) {
  using Z = Pair<T>;
  const auto pair = [](const std::vector<T>& x, int64_t i) {
    const auto at = static_cast<size_t>(2 * i);
    return x.empty() ? Z{T(1), T(0)} : Z{x[at], x[at + 1]};
  };
  const auto number = [](double x) { return static_cast<T>(x); };
  const auto real = [](T x) { return Z{x, T(0)}; };
  const S4Options& o = k.options;
  std::vector<T> K(static_cast<size_t>(k.channels * k.H * k.L));
  for (int64_t c = 0; c < k.channels; ++c)
    for (int64_t h = 0; h < k.H; ++h) {
      const T x = v.inv_dt[static_cast<size_t>(h)];
      const T dt = o.softplus_dt ? std::log(T(1) + std::exp(x)) : std::exp(x);
      T* out = K.data() + (c * k.H + h) * k.L;
      const auto A = [&](int64_t n) {
        const auto at = static_cast<size_t>(h % k.S * k.N + n);
        return Z{-std::exp(v.A_real[at]), o.positive_imag ? v.A_imag[at] : -v.A_imag[at]};
      };
      const auto B = [&](int64_t n) { return pair(v.B, h % k.S * k.N + n); };
      const auto C = [&](int64_t n) { return pair(v.C, (c * k.H + h) * k.N + n); };
      const auto P = [&](int64_t n) { return pair(v.P, h % k.S * k.N + n); };
      if (v.P.empty()) {
        for (int64_t n = 0; n < k.N; ++n) {
          const Z a = real(dt) * A(n), one = real(T(1)), half = real(T(0.5)) * a;
          const Z decay = o.bilinear ? (one + half) / (one - half) : exp(a);
          Z w = C(n) * B(n) * (o.bilinear ? real(dt) / (one - half) : (decay - one) / A(n));
          for (int64_t l = 0; l < k.L; ++l, w = w * decay) out[l] += T(2) * w.re;
        }
        continue;
      }
      const int64_t length = o.length;
      for (int64_t f = 0; f < length; ++f) {  // all frequencies
        const double angle =
            2 * std::numbers::pi * static_cast<double>(f) / static_cast<double>(length);
        const Z w{number(std::cos(angle)), number(-std::sin(angle))}, one = real(T(1)),
                                                                      two = real(T(2));
        Z value{};
        if (2 * f == length) {
          for (int64_t n = 0; n < k.N; ++n) value = value + real(dt * (B(n) * C(n)).re);
        } else {
          const Z z = two * (one - w) / (one + w);
          const auto sum = [&](const auto& x_of, const auto& y_of) {
            Z r{};
            for (int64_t n = 0; n < k.N; ++n) {
              const Z a = real(dt) * A(n), u = real(dt) * x_of(n) * y_of(n);
              r = r + u / (z - a) + conj(u) / (z - conj(a));
            }
            return r;
          };
          const auto Q = [&](int64_t n) { return conj(P(n)); };
          value = sum(B, C) - sum(B, Q) * sum(P, C) / (one + sum(P, Q));
          value = value * two / (one + w);
        }
        for (int64_t l = 0; l < k.L; ++l) {  // Re(value e^{i angle l}) / length
          const double phase = 2 * std::numbers::pi * static_cast<double>(f * l % length) /
                               static_cast<double>(length);
          out[l] += (value.re * number(std::cos(phase)) - value.im * number(std::sin(phase))) /
                    number(static_cast<double>(length));
        }
      }
    }
  return K;
}

}  // namespace krait::ops
