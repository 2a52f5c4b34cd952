// The two passes over a row of logits that a softmax is made of. Only for cpu_simd.cpp files.
#pragma once
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

// The largest of n > 0 elements; NaN where there is one.
HWY_INLINE float largest(const float* x, int64_t n) {
  const Lanes d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  auto most = hn::Set(d, x[0]), nan = hn::Zero(d);
  float rest = x[0], rest_nan = 0;
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    const auto v = hn::LoadU(d, x + i);
    most = hn::Max(most, v);
    nan = hn::IfThenElse(hn::IsNaN(v), v, nan);
  }
  for (; i < n; ++i) {
    if (x[i] != x[i]) rest_nan = x[i];
    rest = x[i] > rest ? x[i] : rest;
  }
  const float any_nan = sum_lanes(d, nan) + rest_nan;
  if (any_nan != any_nan) return any_nan;
  const float m = hn::GetLane(hn::MaxOfLanes(d, most));
  return m > rest ? m : rest;
}

// Σ exp((x - m) · factor) in float32 over runs of 2048, their sums in float64, in order. The terms are
// also written to `terms` (which may be x) unless it is null.
HWY_INLINE double sum_of_exp(const float* x, int64_t n, float m, float factor, float* terms) {
  constexpr int64_t kRun = 2048;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = n - begin < kRun ? n : begin + kRun;
    auto lanes = hn::Zero(Lanes());
    float rest = 0;
    for_lanes(begin, end, [&](auto d, int64_t i) HWY_ATTR {
      const auto distance = hn::Sub(hn::LoadU(d, x + i), hn::Set(d, m));
      const auto e = Exp(d, hn::Mul(distance, hn::Set(d, factor)));
      if (terms) hn::StoreU(e, d, terms + i);
      if constexpr (hn::MaxLanes(d) == hn::MaxLanes(Lanes())) {
        lanes = hn::Add(lanes, e);
      } else {
        rest += hn::GetLane(e);
      }
    });
    sum += static_cast<double>(sum_lanes(Lanes(), lanes)) + static_cast<double>(rest);
  }
  return sum;
}

}  // namespace krait::KRAIT_ISA
