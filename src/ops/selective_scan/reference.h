// selective_scan as its formulas read, one scalar after the other, on any number type: double is the
// oracle, float the plain run that errors are judged by, std::complex<double> gives gradients by the
// complex step. For tests only.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

template <class T>
struct ScanReference {
  int64_t tokens = 0, E = 0, N = 0, G = 1;
  bool constant_B = false, constant_C = false, softplus = true, a_is_log = false;
  bool complex = false;
  std::vector<int64_t> begin;            // borders of the sequences, one more than there are
  std::vector<int64_t> row_in, row_out;  // per sequence, -1: zero start, or last state dropped
  int64_t rows_out = 0;
  // Layouts as in selective_scan.h, all contiguous; an empty D, z, dt_bias or state_in is absent.
  std::vector<T> u, dt, A, B, C, D, z, dt_bias, state_in;

  struct Result {
    std::vector<T> y, state_out;  // rows that no sequence ends in are zero
  };
  Result forward() const;
  // The gradients of Σ dy y + Σ dstate state_out, in the fields of the inputs, by the adjoint recurrence.
  ScanReference backward(const std::vector<T>& dy, const std::vector<T>& dstate) const;

 private:
  static double real(const std::complex<double>& x) { return x.real(); }
  template <class F>
  static F real(F x) {
    return x;
  }
  static std::complex<double> log1p(const std::complex<double>& x) { return std::log(1.0 + x); }
  template <class F>
  static F log1p(F x) {
    return std::log1p(x);
  }

  T step_size(int64_t t, int64_t e) const {
    const T x = dt_at(t, e);
    return !softplus || real(x) > 20 ? x : log1p(std::exp(x));
  }
  T dt_at(int64_t t, int64_t e) const {
    const size_t i = static_cast<size_t>(e);
    return dt[at(t, e)] + (dt_bias.empty() ? T(0) : dt_bias[i]);
  }
  // A state, with what it is made of; one that is not complex has no imaginary part.
  struct Number {
    T re = T(0), im = T(0);
    Number operator+(const Number& b) const { return {re + b.re, im + b.im}; }
    Number operator*(const Number& b) const {
      return {re * b.re - im * b.im, re * b.im + im * b.re};
    }
    Number operator*(const T& s) const { return {re * s, im * s}; }
    Number conj() const { return {re, -im}; }
  };
  int64_t states() const { return complex ? N / 2 : N; }
  Number get(const std::vector<T>& v, size_t n) const {
    return complex ? Number{v[2 * n], v[2 * n + 1]} : Number{v[n], T(0)};
  }
  void add(std::vector<T>& v, size_t n, const Number& x) const {
    v[complex ? 2 * n : n] += x.re;
    if (complex) v[2 * n + 1] += x.im;
  }
  Number A_at(int64_t e, int64_t n) const {
    const Number a = get(A, static_cast<size_t>(e * states() + n));
    return a_is_log ? Number{-std::exp(a.re), T(0)} : a;
  }
  Number decay(const T& delta, const Number& a) const {
    const T size = std::exp(delta * a.re);
    return complex ? Number{size * std::cos(delta * a.im), size * std::sin(delta * a.im)}
                   : Number{size, T(0)};
  }
  // What a number adds to y: its conjugate is not there, but counted.
  T counted(const Number& x) const { return complex ? T(2) * x.re : x.re; }
  size_t at(int64_t t, int64_t e) const { return static_cast<size_t>(t * E + e); }
  size_t at(bool constant, int64_t t, int64_t e, int64_t n) const {
    return static_cast<size_t>(constant ? e * states() + n : (t * G + e / (E / G)) * states() + n);
  }
  static T sigmoid(const T& x) { return T(1) / (T(1) + std::exp(-x)); }
};

template <class T>
typename ScanReference<T>::Result ScanReference<T>::forward() const {
  Result r{std::vector<T>(u.size()), std::vector<T>(static_cast<size_t>(rows_out * E * N))};
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t e = 0; e < E; ++e) {
      std::vector<Number> h(static_cast<size_t>(states()));
      const auto state = [&](int64_t row, size_t n) {
        return static_cast<size_t>((row * E + e) * states()) + n;
      };
      if (row_in[s] >= 0 && !state_in.empty())
        for (size_t n = 0; n < h.size(); ++n) h[n] = get(state_in, state(row_in[s], n));
      for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
        const T delta = step_size(t, e);
        T y = D.empty() ? T(0) : D[static_cast<size_t>(e)] * u[at(t, e)];
        for (int64_t n = 0; n < states(); ++n) {
          Number& hn = h[static_cast<size_t>(n)];
          hn = decay(delta, A_at(e, n)) * hn +
               get(B, at(constant_B, t, e, n)) * (delta * u[at(t, e)]);
          y += counted(get(C, at(constant_C, t, e, n)) * hn);
        }
        r.y[at(t, e)] = z.empty() ? y : y * z[at(t, e)] * sigmoid(z[at(t, e)]);
      }
      if (row_out[s] >= 0 && rows_out > 0)
        for (size_t n = 0; n < h.size(); ++n) add(r.state_out, state(row_out[s], n), h[n]);
    }
  return r;
}

// Of complex numbers the gradient is dL/dre + i dL/dim: that of a factor is the product's times the conjugate of
// the other one.
template <class T>
ScanReference<T> ScanReference<T>::backward(const std::vector<T>& dy,
                                            const std::vector<T>& dstate) const {
  ScanReference g = *this;
  for (auto* v : {&g.u, &g.dt, &g.A, &g.B, &g.C, &g.D, &g.z, &g.dt_bias, &g.state_in})
    v->assign(v->size(), T(0));
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t e = 0; e < E; ++e)
      for (int64_t n = 0; n < states(); ++n) {
        const int64_t L = begin[s + 1] - begin[s], t0 = begin[s];
        std::vector<Number> h(static_cast<size_t>(L + 1));  // h[i]: before step t0 + i
        const auto state = [&](int64_t row) {
          return static_cast<size_t>((row * E + e) * states() + n);
        };
        if (row_in[s] >= 0 && !state_in.empty()) h[0] = get(state_in, state(row_in[s]));
        const Number a = A_at(e, n);
        for (int64_t i = 0; i < L; ++i) {
          const T delta = step_size(t0 + i, e);
          h[static_cast<size_t>(i + 1)] =
              decay(delta, a) * h[static_cast<size_t>(i)] +
              get(B, at(constant_B, t0 + i, e, n)) * (delta * u[at(t0 + i, e)]);
        }
        Number dh;
        if (row_out[s] >= 0 && !dstate.empty()) dh = get(dstate, state(row_out[s]));
        for (int64_t t = begin[s + 1] - 1; t >= t0; --t) {
          const size_t te = at(t, e), b = at(constant_B, t, e, n), c = at(constant_C, t, e, n);
          const Number before = h[static_cast<size_t>(t - t0)],
                       after = h[static_cast<size_t>(t - t0 + 1)];
          const Number Bn = get(B, b), Cn = get(C, c);
          const T delta = step_size(t, e);
          const T sig = z.empty() ? T(0) : sigmoid(z[te]);
          const T dout = dy.empty() ? T(0) : dy[te];
          const T dy_ungated = z.empty() ? dout : dout * z[te] * sig;
          T y_part = counted(Cn * after);  // of y before the gate; D u once, with n = 0
          if (n == 0 && !D.empty()) {
            const size_t i = static_cast<size_t>(e);
            y_part += D[i] * u[te];
            g.D[i] += dy_ungated * u[te];
            g.u[te] += dy_ungated * D[i];
          }
          if (!z.empty()) g.z[te] += dout * y_part * sig * (T(1) + z[te] * (T(1) - sig));
          const T dproduct = complex ? T(2) * dy_ungated : dy_ungated;
          dh = dh + Cn.conj() * dproduct;
          g.add(g.C, c, after.conj() * dproduct);
          g.add(g.B, b, dh * (delta * u[te]));
          const T dx = (dh * Bn.conj()).re;
          g.u[te] += delta * dx;
          dh = dh * decay(delta, a).conj();
          const Number w = dh * before.conj();  // of Δ A
          const T x = dt_at(t, e);
          const T slope = !softplus || real(x) > 20 ? T(1) : sigmoid(x);
          const T ddt = (dx * u[te] + (w * a.conj()).re) * slope;
          g.dt[te] += ddt;
          if (!dt_bias.empty()) g.dt_bias[static_cast<size_t>(e)] += ddt;
          g.add(g.A, static_cast<size_t>(e * states() + n), w * (a_is_log ? delta * a.re : delta));
        }
        if (row_in[s] >= 0 && !state_in.empty()) g.add(g.state_in, state(row_in[s]), dh);
      }
  return g;
}

}  // namespace krait::ops
