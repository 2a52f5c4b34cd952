// mamba3_scan as its formulas read, one scalar after the other, on any number type: double is the oracle,
// float the plain run that errors are judged by, std::complex<double> gives gradients by the complex step.
// For tests only.
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <numbers>
#include <vector>

namespace krait::ops {

template <class T>
struct Mamba3Reference {
  int64_t tokens = 0, H = 1, P = 1, N = 1, G = 1, R = 1, angles = 0;
  bool halves = false, shared_angle = true;
  double norm_eps = 1e-5;
  std::vector<int64_t> begin;            // borders of the sequences, one more than there are
  std::vector<int64_t> row_in, row_out;  // per sequence, -1: zero start, or last state dropped
  int64_t rows_out = 0;
  // Layouts as in mamba3_scan.h, all contiguous; what is empty is absent.
  std::vector<T> x, B, C, B_bias, C_bias, dt, adt, trap, angle, z, D, norm, mimo_x, mimo_z, mimo_o;
  std::vector<T> angle_in, ssm_in, k_in, v_in;

  struct Result {
    std::vector<T> y, angle, ssm, k, v;  // rows of the states that no sequence ends in are zero
  };
  Result forward() const {
    Result r;
    r.y.resize(x.size());
    r.angle.resize(size(rows_out * H * angles));
    r.ssm.resize(size(rows_out * H * P * N));
    r.k.resize(size(rows_out * R * H * N));
    r.v.resize(size(rows_out * H * P));
    for (size_t s = 0; s + 1 < begin.size(); ++s)
      for (int64_t h = 0; h < H; ++h) run(s, h, r);
    return r;
  }

 private:
  using Vector = std::vector<T>;
  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  static double real(const std::complex<double>& v) { return v.real(); }
  template <class F>
  static F real(F v) {
    return v;
  }
  static T sigmoid(const T& v) { return T(1) / (T(1) + std::exp(-v)); }
  static T one_or(const Vector& v, int64_t i) { return v.empty() ? T(1) : v[size(i)]; }

  int64_t partner(int64_t n) const {  // -1: not turned
    if (halves) {
      const int64_t i = n < N / 2 ? n : n - N / 2;
      return i < angles ? (n < N / 2 ? n + N / 2 : i) : -1;
    }
    return n / 2 < angles ? (n ^ 1) : -1;
  }
  bool first_of_pair(int64_t n) const { return halves ? n < N / 2 : n % 2 == 0; }
  int64_t pair(int64_t n) const { return halves ? n % (N / 2) : n / 2; }

  // rows (R, N) of B or C with their bias, turned by θ
  Vector turned(const Vector& of, const Vector& bias, int64_t t, int64_t h,
                const Vector& theta) const {
    Vector out(size(R * N));
    for (int64_t r = 0; r < R; ++r) {
      const auto in = [&](int64_t n) {
        return of[size(((t * R + r) * G + h / (H / G)) * N + n)] + bias[size((h * R + r) * N + n)];
      };
      for (int64_t n = 0; n < N; ++n) {
        const int64_t other = partner(n);
        T value = in(n);
        if (other >= 0) {
          const T a = theta[size(pair(n))];
          value = first_of_pair(n) ? in(n)*std::cos(a) - in(other)*std::sin(a)
                                   : in(other)*std::sin(a) + in(n)*std::cos(a);
        }
        out[size(r * N + n)] = value;
      }
    }
    return out;
  }

  void run(size_t s, int64_t h, Result& to) const {
    const T two_pi = T(2 * std::numbers::pi);
    Vector theta(size(angles)), S(size(P * N)), k(size(R * N)), v(size(P));
    if (row_in[s] >= 0 && !ssm_in.empty()) {
      const int64_t row = row_in[s] * H + h;
      for (int64_t i = 0; i < angles; ++i) theta[size(i)] = angle_in[size(row * angles + i)];
      for (int64_t i = 0; i < P * N; ++i) S[size(i)] = ssm_in[size(row * P * N + i)];
      for (int64_t i = 0; i < P; ++i) v[size(i)] = v_in[size(row * P + i)];
      for (int64_t r = 0; r < R; ++r)
        for (int64_t n = 0; n < N; ++n)
          k[size(r * N + n)] = k_in[size(((row_in[s] * R + r) * H + h) * N + n)];
    }
    for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
      const T delta = dt[size(t * H + h)], decay = std::exp(adt[size(t * H + h)]);
      const T lambda = sigmoid(trap[size(t * H + h)]);
      const T gamma = lambda * delta, beta = (T(1) - lambda) * delta * decay;
      for (int64_t i = 0; i < angles; ++i) {
        T& a = theta[size(i)];
        const T raw = angle[size((shared_angle ? t : t * H + h) * angles + i)];
        a += T(std::numbers::pi) * std::tanh(raw) * delta;
        a -= two_pi * T(std::floor(real(a) / (2 * std::numbers::pi)));
      }
      const Vector next = turned(B, B_bias, t, h, theta), q = turned(C, C_bias, t, h, theta);
      Vector y(size(R * P));
      for (int64_t p = 0; p < P; ++p) {
        const T now = x[size((t * H + h) * P + p)];
        for (int64_t n = 0; n < N; ++n) {
          T& element = S[size(p * N + n)];
          element *= decay;
          for (int64_t r = 0; r < R; ++r) {
            const T m = one_or(mimo_x, (h * R + r) * P + p);
            element += beta * m * v[size(p)] * k[size(r * N + n)];
            element += gamma * m * now * next[size(r * N + n)];
          }
        }
        v[size(p)] = now;
        for (int64_t r = 0; r < R; ++r) {
          T& sum = y[size(r * P + p)];
          sum = D.empty() ? T(0) : D[size(h)] * one_or(mimo_x, (h * R + r) * P + p) * now;
          for (int64_t n = 0; n < N; ++n) sum += S[size(p * N + n)] * q[size(r * N + n)];
        }
      }
      k = next;
      for (int64_t r = 0; r < R; ++r) {
        T scale = T(1);
        if (!norm.empty()) {
          T sum = T(0);
          for (int64_t p = 0; p < P; ++p) sum += y[size(r * P + p)] * y[size(r * P + p)];
          scale = T(1) / std::sqrt(sum / T(static_cast<double>(P)) + T(norm_eps));
        }
        for (int64_t p = 0; p < P; ++p) {
          const int64_t rp = (h * R + r) * P + p;
          T value = y[size(r * P + p)] * scale;
          if (!norm.empty()) value *= norm[size(h * P + p)];
          if (!z.empty()) {
            const T gate = one_or(mimo_z, rp) * z[size((t * H + h) * P + p)];
            value *= gate * sigmoid(gate);
          }
          to.y[size((t * H + h) * P + p)] += one_or(mimo_o, rp) * value;
        }
      }
    }
    if (row_out[s] < 0 || rows_out == 0) return;
    const int64_t row = row_out[s] * H + h;
    for (int64_t i = 0; i < angles; ++i) to.angle[size(row * angles + i)] = theta[size(i)];
    for (int64_t i = 0; i < P * N; ++i) to.ssm[size(row * P * N + i)] = S[size(i)];
    for (int64_t i = 0; i < P; ++i) to.v[size(row * P + i)] = v[size(i)];
    for (int64_t r = 0; r < R; ++r)
      for (int64_t n = 0; n < N; ++n)
        to.k[size(((row_out[s] * R + r) * H + h) * N + n)] = k[size(r * N + n)];
  }
};

}  // namespace krait::ops
