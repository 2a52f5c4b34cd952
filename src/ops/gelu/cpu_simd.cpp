#include "krait/ops/gelu/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

// erf(x)/x over x² in [0, 3.9²] as a Chebyshev series (error of erf below 4e-8); ±1 beyond.
constexpr float kSeries[] = {
    9.883353171e-01f,  -3.464145058e-01f, 1.595823571e-01f,  -7.387415767e-02f, 3.267776271e-02f,
    -1.357662217e-02f, 5.263723149e-03f,  -1.900881984e-03f, 6.396954372e-04f,  -2.009360175e-04f,
    5.904475265e-05f,  -1.627185432e-05f, 4.216555760e-06f,  -1.030076375e-06f, 2.378285354e-07f,
    -5.202186013e-08f, 1.080500611e-08f,  -2.135572721e-09f};
constexpr int kTerms = sizeof(kSeries) / sizeof(kSeries[0]);
constexpr float kEnd = 3.9f;

template <class D>
HWY_INLINE Vec<D> Erf(D d, Vec<D> x) {
  const auto beyond = hn::Gt(hn::Abs(x), hn::Set(d, kEnd));
  const auto one = hn::CopySign(hn::Set(d, 1.0f), x);
  const auto t = hn::MulSub(hn::Mul(x, x), hn::Set(d, 2 / (kEnd * kEnd)), hn::Set(d, 1.0f));
  const auto t2 = hn::Add(t, t);
  auto b1 = hn::Zero(d), b2 = hn::Zero(d);
  for (int k = kTerms - 1; k > 0; --k) {
    const auto b0 = hn::MulAdd(t2, b1, hn::Sub(hn::Set(d, kSeries[k]), b2));
    b2 = b1;
    b1 = b0;
  }
  const auto near = hn::Mul(x, hn::MulAdd(t, b1, hn::Sub(hn::Set(d, kSeries[0] / 2), b2)));
  return hn::IfThenElse(beyond, one, near);
}

template <class D>
HWY_INLINE Vec<D> Phi(D d, Vec<D> x) {
  const auto half = hn::Set(d, 0.5f);
  return hn::MulAdd(half, Erf(d, hn::Mul(x, hn::Set(d, 0x1.6a09e6p-1f))), half);
}

template <class T>
void forward_typed(const T* x, T* y, int64_t n) {
  for_lanes(0, n, [&](auto d, int64_t i) {
    const auto v = load(d, x + i);
    store(d, hn::Mul(v, Phi(d, v)), y + i);
  });
}

// dx (+)= dy (Φ(x) + x φ(x)), φ the normal density
template <class T>
void backward_typed(const T* x, const T* dy, T* dx, bool add, int64_t n) {
  for_lanes(0, n, [&](auto d, int64_t i) {
    const auto v = load(d, x + i);
    const auto density =
        hn::Mul(hn::Set(d, 0x1.988454p-2f), Exp(d, hn::Mul(hn::Set(d, -0.5f), hn::Mul(v, v))));
    auto g = hn::Mul(load(d, dy + i), hn::MulAdd(v, density, Phi(d, v)));
    if (add) g = hn::Add(g, load(d, dx + i));
    store(d, g, dx + i);
  });
}

void forward(const void* x, void* y, bool is_bf16, int64_t n) {
  is_bf16 ? forward_typed(static_cast<const bf16*>(x), static_cast<bf16*>(y), n)
          : forward_typed(static_cast<const float*>(x), static_cast<float*>(y), n);
}

void backward(const void* x, const void* dy, void* dx, bool is_bf16, bool add, int64_t n) {
  is_bf16 ? backward_typed(static_cast<const bf16*>(x), static_cast<const bf16*>(dy),
                           static_cast<bf16*>(dx), add, n)
          : backward_typed(static_cast<const float*>(x), static_cast<const float*>(dy),
                           static_cast<float*>(dx), add, n);
}

}  // namespace

extern const GeluKernels gelu_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
