#include "krait/ops/adamw/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

namespace {

// Elements i and on of a p in two halves, as adamw.h has it.
template <class D>
HWY_INLINE Vec<D> load_halves(D d, const bf16* value, const uint16_t* low, Vec<D> v) {
  const hn::Rebind<int32_t, D> wide;
  const hn::Rebind<int16_t, D> half;
  const auto rest = hn::PromoteTo(wide, hn::LoadU(half, reinterpret_cast<const int16_t*>(low)));
  const auto down = hn::And(hn::ShiftRight<15>(hn::BitCast(wide, v)), hn::Set(wide, 0x10000));
  const auto high = hn::BitCast(wide, load(d, value));
  return hn::BitCast(d, hn::Add(hn::Add(high, rest), down));
}

// Also v, with its sign.
template <class D>
HWY_INLINE void store_halves(D d, Vec<D> p, Vec<D> v, bf16* value, uint16_t* low, float* v_to) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> half;
  const auto bits = hn::BitCast(wide, p);
  store(d, p, value);
  hn::StoreU(hn::TruncateTo(half, bits), half, low);
  const auto down = hn::Eq(hn::And(bits, hn::Set(wide, 0x1ffffu)), hn::Set(wide, 0x8000u));
  hn::StoreU(hn::IfThenElse(hn::RebindMask(d, down), hn::Neg(v), v), d, v_to);
}

void update(const ops::AdamwPiece& p, const ops::AdamwFactors& f) {
  float* const whole = static_cast<float*>(p.value);
  bf16* const halves = static_cast<bf16*>(p.value);
  for_lanes(0, p.n, [&](auto d, int64_t i) HWY_ATTR {
    const auto set = [&](float x) HWY_ATTR { return hn::Set(d, x); };
    const auto g = hn::Mul(hn::LoadU(d, p.grad + i), set(f.clip));
    const auto m = hn::MulAdd(set(f.beta1), hn::LoadU(d, p.m + i), hn::Mul(set(1 - f.beta1), g));
    const auto v_before = hn::LoadU(d, p.v + i);
    const auto before =
        p.low ? load_halves(d, halves + i, p.low + i, v_before) : hn::LoadU(d, whole + i);
    const auto v =
        hn::MulAdd(set(f.beta2), hn::Abs(v_before), hn::Mul(set(1 - f.beta2), hn::Mul(g, g)));
    const auto size = hn::Add(hn::Sqrt(hn::Mul(v, set(f.inv_bias2))), set(f.eps));
    const auto kept = hn::Mul(set(f.keep), before);
    const auto value = hn::NegMulAdd(set(f.step), hn::Div(m, size), kept);
    hn::StoreU(m, d, p.m + i);
    if (p.low) return store_halves(d, value, v, halves + i, p.low + i, p.v + i);
    hn::StoreU(v, d, p.v + i);
    hn::StoreU(value, d, whole + i);
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
