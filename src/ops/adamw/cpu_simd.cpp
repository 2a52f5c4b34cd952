#include "krait/ops/adamw/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

namespace {

void update(const ops::AdamwPiece& p, const ops::AdamwFactors& f) {
  bf16* const rounded = reinterpret_cast<bf16*>(p.rounded);
  for_lanes(0, p.n, [&](auto d, int64_t i) HWY_ATTR {
    const auto set = [&](float x) HWY_ATTR { return hn::Set(d, x); };
    const auto g = hn::Mul(hn::LoadU(d, p.grad + i), set(f.clip));
    const auto m = hn::MulAdd(set(f.beta1), hn::LoadU(d, p.m + i), hn::Mul(set(1 - f.beta1), g));
    const auto v =
        hn::MulAdd(set(f.beta2), hn::LoadU(d, p.v + i), hn::Mul(set(1 - f.beta2), hn::Mul(g, g)));
    const auto size = hn::Add(hn::Sqrt(hn::Mul(v, set(f.inv_bias2))), set(f.eps));
    const auto kept = hn::Mul(set(f.keep), hn::LoadU(d, p.value + i));
    const auto value = hn::NegMulAdd(set(f.step), hn::Div(m, size), kept);
    hn::StoreU(m, d, p.m + i);
    hn::StoreU(v, d, p.v + i);
    hn::StoreU(value, d, p.value + i);
    if (rounded) store(d, value, rounded + i);
  });
}

// Short runs in float32, their sums in float64, in order.
double sum_of_squares(const float* x, int64_t n) {
  constexpr int64_t kRun = 16 * hn::MaxLanes(Lanes());
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = n - begin < kRun ? n : begin + kRun;
    auto lanes = hn::Zero(Lanes());
    float rest = 0;
    for_lanes(begin, end, [&](auto d, int64_t i) HWY_ATTR {
      const auto v = hn::LoadU(d, x + i);
      if constexpr (hn::MaxLanes(d) == hn::MaxLanes(Lanes())) {
        lanes = hn::MulAdd(v, v, lanes);
      } else {
        rest += hn::GetLane(hn::Mul(v, v));
      }
    });
    sum += static_cast<double>(sum_lanes(Lanes(), lanes)) + static_cast<double>(rest);
  }
  return sum;
}

}  // namespace

extern const ops::AdamwKernels adamw_kernels = {update, sum_of_squares};

}  // namespace krait::KRAIT_ISA
