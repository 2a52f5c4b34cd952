// A group of a row at a time, lanes along it: one pass for its sums, one for the results.
#include "krait/ops/gated_norm/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

using ops::GatedNormProblem;

// One group of a row.
template <class T>
struct Group {
  const T *x, *z;
  const float *w, *b;
  bool gate_first;

  template <class D>
  HWY_INLINE Vec<D> gate(D d, int64_t i) const {
    return Silu(d, load(d, z + i));
  }
  // What is normed.
  template <class D>
  HWY_INLINE Vec<D> v(D d, int64_t i) const {
    const auto value = load(d, x + i);
    return z && gate_first ? hn::Mul(value, gate(d, i)) : value;
  }
  template <class D>
  HWY_INLINE Vec<D> scaled(D d, int64_t i, Vec<D> normed) const {
    const auto y = hn::Mul(normed, hn::LoadU(d, w + i));
    return b ? hn::Add(y, hn::LoadU(d, b + i)) : y;
  }
};

template <class T>
Group<T> group_of(const GatedNormProblem& p, int64_t row, int64_t first) {
  return {static_cast<const T*>(p.x) + row * p.x_stride + first,
          p.z ? static_cast<const T*>(p.z) + row * p.z_stride + first : nullptr, p.w + first,
          p.b ? p.b + first : nullptr, p.gate_first};
}

float scale_of(float square, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + eps);
}

// Elements of a group whose gated values, in backward whose sigmoids, are kept between the passes.
constexpr int64_t kKept = 8192;

template <class T>
void forward_group(const GatedNormProblem& p, int64_t row, int64_t first, int64_t n) {
  const Group<T> g = group_of<T>(p, row, first);
  T* const y = static_cast<T*>(p.y) + row * p.E + first;
  float kept[kKept];
  const bool keeps = g.z && g.gate_first && n <= kKept;
  const float square = sum_over(n, [&](auto d, int64_t i) {
    const auto v = g.v(d, i);
    if (keeps) hn::StoreU(v, d, kept + i);
    return hn::Mul(v, v);
  });
  const float scale = scale_of(square, n, p.eps);
  for_lanes(0, n, [&](auto d, int64_t i) {
    const auto v = keeps ? hn::LoadU(d, kept + i) : g.v(d, i);
    auto out = g.scaled(d, i, hn::Mul(v, hn::Set(d, scale)));
    if (g.z && !g.gate_first) out = hn::Mul(out, g.gate(d, i));
    store(d, out, y + i);
  });
}

// Two sums over [0, n) at once, each in the order of sum_over: f(tag, i, a, b) adds to both.
template <class F>
HWY_INLINE void sums_over(int64_t n, const F& f, float& first, float& second) {
  const Lanes d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  auto a0 = hn::Zero(d), a1 = a0, b0 = a0, b1 = a0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    f(d, i, a0, b0);
    f(d, i + step, a1, b1);
  }
  for (; i + step <= n; i += step) f(d, i, a0, b0);
  auto a = hn::Set(OneLane(), sum_lanes(d, hn::Add(a0, a1))),
       b = hn::Set(OneLane(), sum_lanes(d, hn::Add(b0, b1)));
  for (; i < n; ++i) f(OneLane(), i, a, b);
  first = hn::GetLane(a), second = hn::GetLane(b);
}

// With n = v * scale, s = silu(z), and g = dy w (gate first) or dy s w:
//   dv = scale * (g - n * mean(g n))
//   gate first: dx = dv s, dz = dv x silu'(z);   norm first: dx = dv, dz = dy (n w + b) silu'(z)
template <class T>
void backward_group(const GatedNormProblem& p, int64_t row, int64_t first, int64_t n, float* dw,
                    float* db) {
  const Group<T> g = group_of<T>(p, row, first);
  const T* const dy = static_cast<const T*>(p.dy) + row * p.E + first;
  T* const dx = p.dx ? static_cast<T*>(p.dx) + row * p.dx_stride + first : nullptr;
  T* const dz = p.dz ? static_cast<T*>(p.dz) + row * p.dz_stride + first : nullptr;
  const bool gate_first = g.z && g.gate_first, gate_last = g.z && !g.gate_first;
  float kept[kKept];
  const bool keeps = g.z && n <= kKept;
  float square = 0, slope = 0;  // Σ v², Σ g v
  sums_over(
      n,
      [&](auto d, int64_t i, auto& squares, auto& slopes) {
        auto v = load(d, g.x + i), grad = load(d, dy + i);
        if (g.z) {
          const auto z = load(d, g.z + i), sigmoid = Sigmoid(d, z);
          if (keeps) hn::StoreU(sigmoid, d, kept + i);
          auto& gated = gate_first ? v : grad;
          gated = hn::Mul(gated, hn::Mul(z, sigmoid));
        }
        squares = hn::Add(squares, hn::Mul(v, v));
        slopes = hn::Add(slopes, hn::Mul(hn::Mul(grad, hn::LoadU(d, g.w + i)), v));
      },
      square, slope);
  const float scale = scale_of(square, n, p.eps), mean = scale * slope / static_cast<float>(n);
  for_lanes(0, n, [&](auto d, int64_t i) {
    const auto x = load(d, g.x + i), dy_i = load(d, dy + i);
    auto z = hn::Zero(d), sigmoid = z, gate = hn::Set(d, 1.0f);
    if (g.z) {
      z = load(d, g.z + i);
      sigmoid = keeps ? hn::LoadU(d, kept + i) : Sigmoid(d, z);
      gate = hn::Mul(z, sigmoid);
    }
    const auto normed = hn::Mul(gate_first ? hn::Mul(x, gate) : x, hn::Set(d, scale));
    const auto grad = gate_last ? hn::Mul(dy_i, gate) : dy_i;  // before w
    const auto inner =
        hn::NegMulAdd(normed, hn::Set(d, mean), hn::Mul(grad, hn::LoadU(d, g.w + i)));
    const auto dv = hn::Mul(inner, hn::Set(d, scale));
    if (dw) hn::StoreU(hn::MulAdd(grad, normed, hn::LoadU(d, dw + first + i)), d, dw + first + i);
    if (db) hn::StoreU(hn::Add(grad, hn::LoadU(d, db + first + i)), d, db + first + i);
    if (dz) {
      const auto of_gate = gate_last ? hn::Mul(dy_i, g.scaled(d, i, normed)) : hn::Mul(dv, x);
      const auto out = hn::Mul(of_gate, SiluSlope(d, z, sigmoid));
      store(d, p.dz_add ? hn::Add(out, load(d, dz + i)) : out, dz + i);
    }
    if (dx) {
      const auto out = gate_first ? hn::Mul(dv, gate) : dv;
      store(d, p.dx_add ? hn::Add(out, load(d, dx + i)) : out, dx + i);
    }
  });
}

void forward(const GatedNormProblem& p, int64_t row, int64_t end) {
  const int64_t n = p.E / p.groups;
  for (; row < end; ++row)
    for (int64_t first = 0; first < p.E; first += n)
      p.bf16 ? forward_group<bf16>(p, row, first, n) : forward_group<float>(p, row, first, n);
}

void backward(const GatedNormProblem& p, int64_t row, int64_t end, float* dw, float* db) {
  const int64_t n = p.E / p.groups;
  for (; row < end; ++row)
    for (int64_t first = 0; first < p.E; first += n)
      p.bf16 ? backward_group<bf16>(p, row, first, n, dw, db)
             : backward_group<float>(p, row, first, n, dw, db);
}

}  // namespace

extern const ops::GatedNormKernels gated_norm_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
