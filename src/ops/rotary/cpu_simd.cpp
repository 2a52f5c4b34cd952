#include "krait/ops/rotary/kernels.h"

#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

template <class D, class T>
HWY_INLINE void put(D d, Vec<D> v, bool add, T* to) {
  if (add) v = hn::Add(v, load(d, to));
  store(d, v, to);
}

template <class T>
void halves(const RotaryProblem& p, const float* turn, const T* from, T* to) {
  const int64_t half = p.R / 2;
  for_lanes(0, half, [&](auto d, int64_t i) HWY_ATTR {
    const auto cosine = hn::LoadU(d, turn + i), sine = hn::LoadU(d, turn + half + i);
    const auto a = load(d, from + i), b = load(d, from + half + i);
    put(d, hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), p.add, to + i);
    put(d, hn::MulAdd(a, sine, hn::Mul(b, cosine)), p.add, to + half + i);
  });
}

template <class T>
void interleaved(const RotaryProblem& p, const float* turn, const T* from, T* to) {
  const OneLane d;
  for (int64_t i = 0; i < p.R / 2; ++i) {
    const auto cosine = hn::Set(d, turn[i]), sine = hn::Set(d, turn[p.R / 2 + i]);
    const auto a = load(d, from + 2 * i), b = load(d, from + 2 * i + 1);
    put(d, hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), p.add, to + 2 * i);
    put(d, hn::MulAdd(a, sine, hn::Mul(b, cosine)), p.add, to + 2 * i + 1);
  }
}

template <class T>
void rotate(const RotaryProblem& p, const float* turn, const T* from, T* to) {
  for (int64_t h = 0; h < p.H; ++h, from += p.from_head, to += p.to_head) {
    p.interleaved ? interleaved(p, turn, from, to) : halves(p, turn, from, to);
    for_lanes(p.R, p.P,
              [&](auto d, int64_t i) HWY_ATTR { put(d, load(d, from + i), p.add, to + i); });
  }
}

void rotate(const RotaryProblem& p, const float* turn, const void* from, void* to) {
  if (p.bf16) {
    rotate(p, turn, static_cast<const bf16*>(from), static_cast<bf16*>(to));
  } else {
    rotate(p, turn, static_cast<const float*>(from), static_cast<float*>(to));
  }
}

}  // namespace

extern const RotaryKernels rotary_kernels = {rotate};

}  // namespace krait::KRAIT_ISA
