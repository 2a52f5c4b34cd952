// The plain definition of a mixture of experts with one product an expert, for tests.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "krait/ops/moe/moe.h"

namespace krait::ops {

struct MoeSizes {
  int64_t T, n, D, F;
};

template <class T>
struct MoeReference {
  std::vector<T> y;  // (T, F), Σ_j weight_j · W_e x
  T balance = 0;
  int64_t dropped = 0;
};

// router (n, D), x (T, D), w (n, F, D). `real` gives the real part of a T, by which experts are chosen.
template <class T, class Real>
MoeReference<T> moe_reference(const MoeSizes& z, const RouteOptions& o,
                              const std::vector<T>& router, const std::vector<T>& x,
                              const std::vector<T>& w, const Real& real) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  MoeReference<T> r;
  r.y.assign(at(z.T * z.F), T(0));
  std::vector<int64_t> taken(at(z.n)), chosen(at(z.n));
  const int64_t capacity =
      o.capacity_factor > 0
          ? std::min(static_cast<int64_t>(o.capacity_factor * static_cast<double>(z.T * o.k) /
                                          static_cast<double>(z.n)),
                     z.T)
          : z.T;
  std::vector<T> mean(at(z.n));
  for (int64_t t = 0; t < z.T; ++t) {
    std::vector<T> p(at(z.n));
    T sum = 0;
    for (int64_t e = 0; e < z.n; ++e) {
      T logit = 0;
      for (int64_t d = 0; d < z.D; ++d) logit += router[at(e * z.D + d)] * x[at(t * z.D + d)];
      sum += p[at(e)] = std::exp(logit);
    }
    std::vector<int64_t> order;
    for (int64_t e = 0; e < z.n; ++e) {
      p[at(e)] /= sum;
      mean[at(e)] += p[at(e)] / T(static_cast<float>(z.T));
      order.push_back(e);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return real(p[at(a)]) > real(p[at(b)]); });
    T total = 0;
    for (int64_t j = 0; j < o.k; ++j) total += p[at(order[at(j)])];
    for (int64_t j = 0; j < o.k; ++j) {
      const int64_t e = order[at(j)];
      ++chosen[at(e)];
      if (taken[at(e)] == capacity) {
        ++r.dropped;
        continue;
      }
      ++taken[at(e)];
      const T weight = o.renormalize ? p[at(e)] / total : p[at(e)];
      for (int64_t f = 0; f < z.F; ++f) {
        T s = 0;
        for (int64_t d = 0; d < z.D; ++d) s += w[at((e * z.F + f) * z.D + d)] * x[at(t * z.D + d)];
        r.y[at(t * z.F + f)] += weight * s;
      }
    }
  }
  for (int64_t e = 0; e < z.n; ++e)
    r.balance += T(o.balance * static_cast<float>(z.n) * static_cast<float>(chosen[at(e)]) /
                   static_cast<float>(z.T)) *
                 mean[at(e)];
  return r;
}

}  // namespace krait::ops
