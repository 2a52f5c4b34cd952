// attention as its formula reads, one scalar after the other, on any number type: double is the oracle, float
// the plain run that errors are judged by, std::complex<double> gives gradients by the complex step. For
// tests only.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace krait::ops {

template <class T>
struct AttentionReference {
  int64_t tokens = 0, H = 1, Hkv = 1, P = 1, C = 0, C_out = 0, window = 0;
  double scale = 1;
  bool causal = true;
  std::vector<int64_t> begin, row_in, row_out;  // as in a Packing
  std::vector<int64_t> length;                  // of each row of the cache that comes in
  int64_t rows_out = 0;
  // (tokens, H, P), (tokens, Hkv, P), caches (S, C, Hkv·P), empty where absent
  std::vector<T> q, k, v, cache_k, cache_v;

  struct Result {
    std::vector<T> y, cache_k, cache_v;  // places of the caches that hold no token are zero
    std::vector<double> length;
  };
  Result forward() const;
  // The gradients of Σ dy y + Σ dcache cache, in the fields of the inputs.
  AttentionReference backward(const std::vector<T>& dy, const std::vector<T>& dk_out,
                              const std::vector<T>& dv_out) const;

 private:
  static double real(const std::complex<double>& x) { return x.real(); }
  static double real(double x) { return x; }
  static float real(float x) { return x; }

  int64_t before(size_t s) const {
    return row_in[s] < 0 || cache_k.empty() ? 0 : length[static_cast<size_t>(row_in[s])];
  }
  // Where the key or value of a position is: an index into own (k, v) or, second, into the cache.
  size_t place(size_t s, int64_t position, int64_t g, bool& cached) const {
    const int64_t n = before(s);
    cached = position < n;
    return static_cast<size_t>(cached ? ((row_in[s] * C + position % C) * Hkv + g) * P
                                      : ((begin[s] + position - n) * Hkv + g) * P);
  }
  size_t place_out(size_t s, int64_t position, int64_t g) const {
    return static_cast<size_t>(((row_out[s] * C_out + position % C_out) * Hkv + g) * P);
  }
  // Calls f(s, t, h, low, high) for every token and head, with the positions that it sees.
  template <class F>
  void each(const F& f) const {
    for (size_t s = 0; s + 1 < begin.size(); ++s)
      for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
        const int64_t at = before(s) + t - begin[s];
        const int64_t high = causal ? at + 1 : begin[s + 1] - begin[s];
        const int64_t low = window > 0 ? std::max<int64_t>(0, at + 1 - window) : 0;
        for (int64_t h = 0; h < H; ++h) f(s, t, h, low, high);
      }
  }
  std::vector<T> weights(size_t s, int64_t t, int64_t h, int64_t low, int64_t high) const {
    std::vector<T> p;
    double most = -1e300;
    for (int64_t i = low; i < high; ++i) {
      bool cached;
      const size_t at = place(s, i, h / (H / Hkv), cached);
      const std::vector<T>& keys = cached ? cache_k : k;
      T sum(0);
      for (size_t d = 0; d < static_cast<size_t>(P); ++d)
        sum += q[static_cast<size_t>((t * H + h) * P) + d] * keys[at + d];
      p.push_back(sum * T(scale));
      most = std::max(most, static_cast<double>(real(p.back())));
    }
    T total(0);
    for (T& x : p) total += x = std::exp(x - T(most));
    for (T& x : p) x /= total;
    return p;
  }
  // Calls f(s, position, its place out) for what the caches hold in the end, key head by key head.
  template <class F>
  void each_kept(const F& f) const {
    for (size_t s = 0; s + 1 < begin.size(); ++s) {
      if (row_out[s] < 0 || rows_out == 0) continue;
      const int64_t total = before(s) + begin[s + 1] - begin[s];
      for (int64_t i = std::max<int64_t>(0, total - C_out); i < total; ++i)
        for (int64_t g = 0; g < Hkv; ++g) f(s, i, g);
    }
  }
};

template <class T>
typename AttentionReference<T>::Result AttentionReference<T>::forward() const {
  Result r;
  r.y.assign(q.size(), T(0));
  each([&](size_t s, int64_t t, int64_t h, int64_t low, int64_t high) {
    const std::vector<T> p = weights(s, t, h, low, high);
    for (int64_t i = low; i < high; ++i) {
      bool cached;
      const size_t at = place(s, i, h / (H / Hkv), cached);
      for (size_t d = 0; d < static_cast<size_t>(P); ++d)
        r.y[static_cast<size_t>((t * H + h) * P) + d] +=
            p[static_cast<size_t>(i - low)] * (cached ? cache_v : v)[at + d];
    }
  });
  const auto size = static_cast<size_t>(rows_out * C_out * Hkv * P);
  r.cache_k.assign(size, T(0));
  r.cache_v.assign(size, T(0));
  r.length.assign(static_cast<size_t>(rows_out), 0);
  for (size_t s = 0; s + 1 < begin.size() && rows_out > 0; ++s)
    if (row_out[s] >= 0)
      r.length[static_cast<size_t>(row_out[s])] =
          static_cast<double>(before(s) + begin[s + 1] - begin[s]);
  each_kept([&](size_t s, int64_t i, int64_t g) {
    bool cached;
    const size_t at = place(s, i, g, cached), to = place_out(s, i, g);
    for (size_t d = 0; d < static_cast<size_t>(P); ++d) {
      r.cache_k[to + d] = (cached ? cache_k : k)[at + d];
      r.cache_v[to + d] = (cached ? cache_v : v)[at + d];
    }
  });
  return r;
}

template <class T>
AttentionReference<T> AttentionReference<T>::backward(const std::vector<T>& dy,
                                                      const std::vector<T>& dk_out,
                                                      const std::vector<T>& dv_out) const {
  AttentionReference g;
  g.q.assign(q.size(), T(0));
  g.k.assign(k.size(), T(0));
  g.v.assign(v.size(), T(0));
  g.cache_k.assign(cache_k.size(), T(0));
  g.cache_v.assign(cache_v.size(), T(0));
  each([&](size_t s, int64_t t, int64_t h, int64_t low, int64_t high) {
    const std::vector<T> p = weights(s, t, h, low, high);
    const size_t row = static_cast<size_t>((t * H + h) * P), n = static_cast<size_t>(P);
    std::vector<T> dp(p.size(), T(0));
    T mean(0);
    for (size_t j = 0; j < p.size(); ++j) {
      bool cached;
      const size_t at = place(s, low + static_cast<int64_t>(j), h / (H / Hkv), cached);
      for (size_t d = 0; d < n; ++d) {
        dp[j] += dy[row + d] * (cached ? cache_v : v)[at + d];
        (cached ? g.cache_v : g.v)[at + d] += p[j] * dy[row + d];
      }
      mean += p[j] * dp[j];
    }
    for (size_t j = 0; j < p.size(); ++j) {
      bool cached;
      const size_t at = place(s, low + static_cast<int64_t>(j), h / (H / Hkv), cached);
      const T ds = p[j] * (dp[j] - mean) * T(scale);
      for (size_t d = 0; d < n; ++d) {
        g.q[row + d] += ds * (cached ? cache_k : k)[at + d];
        (cached ? g.cache_k : g.k)[at + d] += ds * q[row + d];
      }
    }
  });
  each_kept([&](size_t s, int64_t i, int64_t head) {
    bool cached;
    const size_t at = place(s, i, head, cached), from = place_out(s, i, head);
    for (size_t d = 0; d < static_cast<size_t>(P); ++d) {
      (cached ? g.cache_k : g.k)[at + d] += dk_out[from + d];
      (cached ? g.cache_v : g.v)[at + d] += dv_out[from + d];
    }
  });
  return g;
}

}  // namespace krait::ops
