#include "krait/ops/gate/gate.h"
#include "krait/ops/gate/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

using ops::Gate;

// A function's value and slope.
template <class D>
struct Point {
  Vec<D> value, slope;
};

// The normal distribution below -|x|: e^(-x²/2) t P(t), t = 1 / (1 + 0.3 |x|); P interpolates at Chebyshev's
// points of 0 <= |x| <= 14 (relative error 5e-9, 3e-7 with the roundings of float32).
template <class D>
HWY_INLINE Vec<D> lower_tail(D d, Vec<D> x, Vec<D> density) {
  const auto t =
      hn::Div(hn::Set(d, 1.0f), hn::MulAdd(hn::Abs(x), hn::Set(d, 0.3f), hn::Set(d, 1.0f)));
  constexpr float kP[] = {-0.020914359018206596f, 0.11404027044773102f,  -0.2320384830236435f,
                          0.19694067537784576f,   -0.08374255150556564f, 0.09848073869943619f,
                          0.07758906483650208f,   0.11040517687797546f,  0.11955176293849945f,
                          0.11968769133090973f};
  auto p = hn::Set(d, kP[0]);
#pragma GCC unroll 9
  for (int i = 1; i < 10; ++i) p = hn::MulAdd(p, t, hn::Set(d, kP[i]));
  return hn::Mul(hn::Mul(density, t), p);
}

template <class D>
HWY_INLINE Point<D> gelu(D d, Vec<D> x) {
  const auto density = Exp(d, hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f)));  // times sqrt(2π)
  const auto tail = lower_tail(d, x, density);
  const auto below = hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Sub(hn::Set(d, 1.0f), tail), tail);
  const auto slope = hn::MulAdd(hn::Mul(x, density), hn::Set(d, 0.398942280401432678f), below);
  return {hn::Mul(x, below), slope};
}

template <class D>
HWY_INLINE Point<D> gelu_tanh(D d, Vec<D> x) {
  // (1 + tanh(a)) / 2 = sigmoid(2a)
  const auto two_b = hn::Set(d, 1.59576912160573071f), c = hn::Set(d, 0.044715f);
  const auto one = hn::Set(d, 1.0f), squared = hn::Mul(x, x);
  const auto a = hn::Mul(hn::Mul(two_b, x), hn::MulAdd(c, squared, one));
  const auto s = Sigmoid(d, a), rest = Sigmoid(d, hn::Neg(a));  // 1 - s would cancel
  const auto inner = hn::Mul(two_b, hn::MulAdd(hn::Mul(hn::Set(d, 3.0f), c), squared, one));
  const auto slope = hn::Mul(s, hn::MulAdd(hn::Mul(x, rest), inner, one));
  return {hn::Mul(x, s), slope};
}

template <Gate kind, class D>
HWY_INLINE Point<D> at(D d, Vec<D> x) {
  if constexpr (kind == Gate::silu) {
    return {Silu(d, x), SiluSlope(d, x)};
  } else if constexpr (kind == Gate::sigmoid) {
    const auto s = Sigmoid(d, x);
    return {s, hn::Mul(s, Sigmoid(d, hn::Neg(x)))};  // 1 - s would cancel
  } else if constexpr (kind == Gate::gelu) {
    return gelu(d, x);
  } else if constexpr (kind == Gate::gelu_tanh) {
    return gelu_tanh(d, x);
  } else {
    const auto above = hn::Gt(x, hn::Zero(d));
    const auto r = hn::IfThenElseZero(above, x);
    if constexpr (kind == Gate::relu) return {r, hn::IfThenElseZero(above, hn::Set(d, 1.0f))};
    return {hn::Mul(r, r), hn::Add(r, r)};
  }
}

template <class T>
T* row(void* base, int64_t i, int64_t stride) {
  return base ? static_cast<T*>(base) + i * stride : nullptr;
}
template <class T>
const T* row(const void* base, int64_t i, int64_t stride) {
  return base ? static_cast<const T*>(base) + i * stride : nullptr;
}

template <Gate kind, class T>
void forward_rows(const GateProblem& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *g = row<T>(p.g, r, p.g_row), *u = row<T>(p.u, r, p.u_row);
    T* y = row<T>(p.y, r, p.F);
    for_lanes(0, p.F, [&](auto d, int64_t i) HWY_ATTR {
      auto v = at<kind>(d, load(d, g + i)).value;
      if (u) v = hn::Mul(v, load(d, u + i));
      store(d, v, y + i);
    });
  }
}

template <Gate kind, class T>
void backward_rows(const GateProblem& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *g = row<T>(p.g, r, p.g_row), *u = row<T>(p.u, r, p.u_row), *dy = row<T>(p.dy, r, p.F);
    T *dg = row<T>(p.dg, r, p.g_row), *du = row<T>(p.du, r, p.u_row);
    for_lanes(0, p.F, [&](auto d, int64_t i) HWY_ATTR {
      const auto f = at<kind>(d, load(d, g + i));
      const auto grad = load(d, dy + i);
      if (du) {
        auto v = hn::Mul(f.value, grad);
        if (p.add_u) v = hn::Add(v, load(d, du + i));
        store(d, v, du + i);
      }
      if (dg) {
        auto v = hn::Mul(f.slope, grad);
        if (u) v = hn::Mul(v, load(d, u + i));
        if (p.add_g) v = hn::Add(v, load(d, dg + i));
        store(d, v, dg + i);
      }
    });
  }
}

template <Gate kind>
void pick(const GateProblem& p, bool forward, int64_t begin, int64_t end) {
  if (forward) {
    p.bf16 ? forward_rows<kind, bf16>(p, begin, end) : forward_rows<kind, float>(p, begin, end);
  } else {
    p.bf16 ? backward_rows<kind, bf16>(p, begin, end) : backward_rows<kind, float>(p, begin, end);
  }
}

void pick(const GateProblem& p, bool forward, int64_t begin, int64_t end) {
  switch (static_cast<Gate>(p.kind)) {
    case Gate::silu: return pick<Gate::silu>(p, forward, begin, end);
    case Gate::sigmoid: return pick<Gate::sigmoid>(p, forward, begin, end);
    case Gate::gelu: return pick<Gate::gelu>(p, forward, begin, end);
    case Gate::gelu_tanh: return pick<Gate::gelu_tanh>(p, forward, begin, end);
    case Gate::relu: return pick<Gate::relu>(p, forward, begin, end);
    case Gate::relu2: return pick<Gate::relu2>(p, forward, begin, end);
  }
}

void forward(const GateProblem& p, int64_t begin, int64_t end) { pick(p, true, begin, end); }
void backward(const GateProblem& p, int64_t begin, int64_t end) { pick(p, false, begin, end); }

}  // namespace

extern const GateKernels gate_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
