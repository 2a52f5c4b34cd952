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
  T A_at(int64_t e, int64_t n) const {
    const T a = A[static_cast<size_t>(e * N + n)];
    return a_is_log ? -std::exp(a) : a;
  }
  size_t at(int64_t t, int64_t e) const { return static_cast<size_t>(t * E + e); }
  size_t at(bool constant, int64_t t, int64_t e, int64_t n) const {
    return static_cast<size_t>(constant ? e * N + n : (t * G + e / (E / G)) * N + n);
  }
  static T sigmoid(const T& x) { return T(1) / (T(1) + std::exp(-x)); }
};

template <class T>
typename ScanReference<T>::Result ScanReference<T>::forward() const {
  Result r{std::vector<T>(u.size()), std::vector<T>(static_cast<size_t>(rows_out * E * N))};
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t e = 0; e < E; ++e) {
      std::vector<T> h(static_cast<size_t>(N));
      if (row_in[s] >= 0 && !state_in.empty())
        for (int64_t n = 0; n < N; ++n)
          h[static_cast<size_t>(n)] = state_in[static_cast<size_t>((row_in[s] * E + e) * N + n)];
      for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
        const T delta = step_size(t, e);
        T y = D.empty() ? T(0) : D[static_cast<size_t>(e)] * u[at(t, e)];
        for (int64_t n = 0; n < N; ++n) {
          T& hn = h[static_cast<size_t>(n)];
          hn = std::exp(delta * A_at(e, n)) * hn + delta * B[at(constant_B, t, e, n)] * u[at(t, e)];
          y += C[at(constant_C, t, e, n)] * hn;
        }
        r.y[at(t, e)] = z.empty() ? y : y * z[at(t, e)] * sigmoid(z[at(t, e)]);
      }
      if (row_out[s] >= 0 && rows_out > 0)
        for (int64_t n = 0; n < N; ++n)
          r.state_out[static_cast<size_t>((row_out[s] * E + e) * N + n)] =
              h[static_cast<size_t>(n)];
    }
  return r;
}

template <class T>
ScanReference<T> ScanReference<T>::backward(const std::vector<T>& dy,
                                            const std::vector<T>& dstate) const {
  ScanReference g = *this;
  for (auto* v : {&g.u, &g.dt, &g.A, &g.B, &g.C, &g.D, &g.z, &g.dt_bias, &g.state_in})
    v->assign(v->size(), T(0));
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t e = 0; e < E; ++e)
      for (int64_t n = 0; n < N; ++n) {
        const int64_t L = begin[s + 1] - begin[s], t0 = begin[s];
        std::vector<T> h(static_cast<size_t>(L + 1));  // h[i]: before step t0 + i
        const auto state = [&](int64_t row) { return static_cast<size_t>((row * E + e) * N + n); };
        if (row_in[s] >= 0 && !state_in.empty()) h[0] = state_in[state(row_in[s])];
        for (int64_t i = 0; i < L; ++i) {
          const T delta = step_size(t0 + i, e);
          h[static_cast<size_t>(i + 1)] =
              std::exp(delta * A_at(e, n)) * h[static_cast<size_t>(i)] +
              delta * B[at(constant_B, t0 + i, e, n)] * u[at(t0 + i, e)];
        }
        T dh = row_out[s] >= 0 && !dstate.empty() ? dstate[state(row_out[s])] : T(0);
        for (int64_t t = begin[s + 1] - 1; t >= t0; --t) {
          const size_t te = at(t, e), b = at(constant_B, t, e, n), c = at(constant_C, t, e, n);
          const T before = h[static_cast<size_t>(t - t0)],
                  after = h[static_cast<size_t>(t - t0 + 1)];
          const T delta = step_size(t, e), a = A_at(e, n), decay = std::exp(delta * a);
          const T sig = z.empty() ? T(0) : sigmoid(z[te]);
          const T dout = dy.empty() ? T(0) : dy[te];
          const T dy_ungated = z.empty() ? dout : dout * z[te] * sig;
          T y_part = C[c] * after;  // of y before the gate; D u once, with n = 0
          if (n == 0 && !D.empty()) {
            const size_t i = static_cast<size_t>(e);
            y_part += D[i] * u[te];
            g.D[i] += dy_ungated * u[te];
            g.u[te] += dy_ungated * D[i];
          }
          if (!z.empty()) g.z[te] += dout * y_part * sig * (T(1) + z[te] * (T(1) - sig));
          dh += C[c] * dy_ungated;
          g.C[c] += dy_ungated * after;
          g.B[b] += dh * delta * u[te];
          g.u[te] += dh * delta * B[b];
          const T x = dt_at(t, e);
          const T slope = !softplus || real(x) > 20 ? T(1) : sigmoid(x);
          const T ddt = (dh * B[b] * u[te] + dh * decay * before * a) * slope;
          g.dt[te] += ddt;
          if (!dt_bias.empty()) g.dt_bias[static_cast<size_t>(e)] += ddt;
          g.A[static_cast<size_t>(e * N + n)] +=
              dh * decay * before * delta * (a_is_log ? a : T(1));
          dh *= decay;
        }
        if (row_in[s] >= 0 && !state_in.empty()) g.state_in[state(row_in[s])] += dh;
      }
  return g;
}

}  // namespace krait::ops
