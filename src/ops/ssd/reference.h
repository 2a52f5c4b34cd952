// ssd as its formulas read, one scalar after the other, on any number type: double is the oracle, float the
// plain run that errors are judged by, std::complex<double> gives gradients by the complex step. For
// tests only.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

template <class T>
struct SsdReference {
  int64_t tokens = 0, H = 0, P = 0, N = 0, G = 1;
  bool softplus = true, a_is_log = false, D_per_channel = false;
  double dt_min = 0, dt_max = 1e300;
  std::vector<int64_t> begin;            // borders of the sequences, one more than there are
  std::vector<int64_t> row_in, row_out;  // per sequence, -1: zero start, or last state dropped
  int64_t rows_out = 0;
  // Layouts as in ssd.h, all contiguous; an empty D, dt_bias or state_in is absent.
  std::vector<T> x, dt, A, B, C, D, dt_bias, state_in;

  struct Result {
    std::vector<T> y, state_out;  // rows that no sequence ends in are zero
  };
  Result forward() const;
  // The gradients of Σ dy y + Σ dstate state_out, in the fields of the inputs, by the adjoint recurrence.
  SsdReference backward(const std::vector<T>& dy, const std::vector<T>& dstate) const;

 private:
  static double real(const std::complex<double>& v) { return v.real(); }
  template <class F>
  static F real(F v) {
    return v;
  }
  static std::complex<double> log1p(const std::complex<double>& v) { return std::log(1.0 + v); }
  template <class F>
  static F log1p(const F& v) {
    using std::log1p;
    return log1p(v);
  }
  template <class F>
  static F exp(const F& v) {
    using std::exp;
    return exp(v);
  }
  static size_t index(int64_t i) { return static_cast<size_t>(i); }
  T before_softplus(int64_t t, int64_t h) const {
    return dt[index(t * H + h)] + (dt_bias.empty() ? T(0) : dt_bias[index(h)]);
  }
  T unclamped(int64_t t, int64_t h) const {
    const T v = before_softplus(t, h);
    return !softplus || real(v) > 20 ? v : log1p(exp(v));
  }
  bool clamped(const T& v) const { return real(v) < dt_min || real(v) > dt_max; }
  T step_size(int64_t t, int64_t h) const {
    const T v = unclamped(t, h);
    return real(v) < dt_min ? T(dt_min) : real(v) > dt_max ? T(dt_max) : v;
  }
  T slope(int64_t t, int64_t h) const {
    const T v = before_softplus(t, h);
    if (clamped(unclamped(t, h))) return T(0);
    return !softplus || real(v) > 20 ? T(1) : T(1) / (T(1) + exp(-v));
  }
  T rate(int64_t h) const { return a_is_log ? -exp(A[index(h)]) : A[index(h)]; }
  size_t in_x(int64_t t, int64_t h, int64_t i) const { return index((t * H + h) * P + i); }
  size_t in_B(int64_t t, int64_t h, int64_t n) const {
    return index((t * G + h / (H / G)) * N + n);
  }
  size_t in_D(int64_t h, int64_t i) const { return index(D_per_channel ? h * P + i : h); }
  size_t in_state(int64_t row, int64_t h, int64_t i, int64_t n) const {
    return index(((row * H + h) * P + i) * N + n);
  }
  bool starts(size_t s) const { return row_in[s] >= 0 && !state_in.empty(); }
};

template <class T>
typename SsdReference<T>::Result SsdReference<T>::forward() const {
  Result r{std::vector<T>(x.size()), std::vector<T>(index(rows_out * H * P * N))};
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < P; ++i) {
        std::vector<T> S(index(N));
        for (int64_t n = 0; n < N && starts(s); ++n)
          S[index(n)] = state_in[in_state(row_in[s], h, i, n)];
        for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
          const T delta = step_size(t, h), decay = exp(delta * rate(h));
          T y = D.empty() ? T(0) : D[in_D(h, i)] * x[in_x(t, h, i)];
          for (int64_t n = 0; n < N; ++n) {
            S[index(n)] = decay * S[index(n)] + delta * x[in_x(t, h, i)] * B[in_B(t, h, n)];
            y += S[index(n)] * C[in_B(t, h, n)];
          }
          r.y[in_x(t, h, i)] = y;
        }
        for (int64_t n = 0; n < N && row_out[s] >= 0 && rows_out > 0; ++n)
          r.state_out[in_state(row_out[s], h, i, n)] = S[index(n)];
      }
  return r;
}

template <class T>
SsdReference<T> SsdReference<T>::backward(const std::vector<T>& dy,
                                          const std::vector<T>& dstate) const {
  SsdReference g = *this;
  for (auto* v : {&g.x, &g.dt, &g.A, &g.B, &g.C, &g.D, &g.dt_bias, &g.state_in})
    v->assign(v->size(), T(0));
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < P; ++i)
        for (int64_t n = 0; n < N; ++n) {
          const int64_t L = begin[s + 1] - begin[s], t0 = begin[s];
          std::vector<T> S(index(L + 1));  // S[k]: before token t0 + k
          if (starts(s)) S[0] = state_in[in_state(row_in[s], h, i, n)];
          for (int64_t k = 0; k < L; ++k) {
            const T delta = step_size(t0 + k, h);
            S[index(k + 1)] = exp(delta * rate(h)) * S[index(k)] +
                              delta * x[in_x(t0 + k, h, i)] * B[in_B(t0 + k, h, n)];
          }
          T dS = row_out[s] >= 0 && !dstate.empty() ? dstate[in_state(row_out[s], h, i, n)] : T(0);
          for (int64_t t = begin[s + 1] - 1; t >= t0; --t) {
            const size_t tx = in_x(t, h, i), tb = in_B(t, h, n);
            const T before = S[index(t - t0)], after = S[index(t - t0 + 1)];
            const T delta = step_size(t, h), a = rate(h), decay = exp(delta * a);
            const T out = dy.empty() ? T(0) : dy[tx];
            if (n == 0 && !D.empty()) {
              g.D[in_D(h, i)] += out * x[tx];
              g.x[tx] += out * D[in_D(h, i)];
            }
            dS += C[tb] * out;
            g.C[tb] += out * after;
            g.B[tb] += dS * delta * x[tx];
            g.x[tx] += dS * delta * B[tb];
            const T ddt = (dS * B[tb] * x[tx] + dS * decay * before * a) * slope(t, h);
            g.dt[index(t * H + h)] += ddt;
            if (!dt_bias.empty()) g.dt_bias[index(h)] += ddt;
            g.A[index(h)] += dS * decay * before * delta * (a_is_log ? a : T(1));
            dS *= decay;
          }
          if (starts(s)) g.state_in[in_state(row_in[s], h, i, n)] += dS;
        }
  return g;
}

}  // namespace krait::ops
