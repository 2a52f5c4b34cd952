#include <math.h>

#include "krait/ops/cross_entropy/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

using ops::LogitsGrad;

namespace {

// Partial sums of this many elements go into float64, in order.
constexpr int64_t kRun = 2048;

float largest(const float* x, int64_t n) {
  const Lanes d;
  auto m = hn::Set(d, x[0]);
  float rest = x[0];
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + step <= n; i += step) m = hn::Max(m, hn::LoadU(d, x + i));
  for (; i < n; ++i) rest = x[i] > rest ? x[i] : rest;
  const float most = hn::GetLane(hn::MaxOfLanes(d, m));
  return most > rest ? most : rest;
}

// Σ exp(x - m); with `keep` the terms take the place of x.
double sum_of_exp(float* x, int64_t n, float m, bool keep) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = n - begin < kRun ? n : begin + kRun;
    auto lanes = hn::Zero(Lanes());
    float rest = 0;
    for_lanes(begin, end, [&](auto d, int64_t i) HWY_ATTR {
      const auto e = Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, m)));
      if (keep) hn::StoreU(e, d, x + i);
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

double row(float* logits, int64_t V, int64_t target, float scale, LogitsGrad grad) {
  const float m = largest(logits, V), at_target = logits[target];
  const double sum = sum_of_exp(logits, V, m, grad != LogitsGrad::none);
  if (grad != LogitsGrad::none) {
    const float factor = static_cast<float>(static_cast<double>(scale) / sum);
    const float p = logits[target];  // sum · softmax
    const float d_target = static_cast<float>(static_cast<double>(scale) * (static_cast<double>(p) / sum - 1.0));
    if (grad == LogitsGrad::f32) {
      for_lanes(0, V, [&](auto d, int64_t i) HWY_ATTR {
        hn::StoreU(hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), d, logits + i);
      });
      logits[target] = d_target;
    } else {
      // In ascending order a result never overwrites what is still to be read.
      bf16* const out = reinterpret_cast<bf16*>(logits);
      for_lanes(0, V, [&](auto d, int64_t i) HWY_ATTR {
        store(d, hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), out + i);
      });
      store(OneLane(), hn::Set(OneLane(), d_target), out + target);
    }
  }
  return static_cast<double>(m) - static_cast<double>(at_target) + log(sum);
}

}  // namespace

extern const ops::CrossEntropyKernels cross_entropy_kernels = {row};

}  // namespace krait::KRAIT_ISA
