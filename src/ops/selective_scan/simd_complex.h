// Private to cpu_simd.cpp: the recurrence and its adjoint over one chunk of time, of complex states. A state is two
// rows, of real and of imaginary parts.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/selective_scan/simd_states.h"
#include "krait/ops/simd_turns.h"

namespace krait::KRAIT_ISA::selective_scan {

struct Pair {
  V re, im;
};

static HWY_INLINE Pair pair_at(const float* rows, int64_t n, int v) {
  return {at(rows + 2 * n * kBlock, v), at(rows + (2 * n + 1) * kBlock, v)};
}
static HWY_INLINE void store_pair(Pair x, float* rows, int64_t n, int v) {
  hn::StoreU(x.re, d, rows + 2 * n * kBlock + v);
  hn::StoreU(x.im, d, rows + (2 * n + 1) * kBlock + v);
}
template <bool kVaries>
static HWY_INLINE Pair pair_of(const float* p, int64_t n, int v) {
  return {operand<kVaries>(p, 2 * n, v), operand<kVaries>(p, 2 * n + 1, v)};
}

static HWY_INLINE Pair add_product(Pair a, Pair b, Pair sum) {
  return {hn::NegMulAdd(a.im, b.im, hn::MulAdd(a.re, b.re, sum.re)),
          hn::MulAdd(a.im, b.re, hn::MulAdd(a.re, b.im, sum.im))};
}
static HWY_INLINE Pair add_scaled(V s, Pair a, Pair sum) {
  return {hn::MulAdd(s, a.re, sum.re), hn::MulAdd(s, a.im, sum.im)};
}
static HWY_INLINE Pair scaled(V s, Pair a) { return {hn::Mul(s, a.re), hn::Mul(s, a.im)}; }
static HWY_INLINE Pair conj(Pair a) { return {a.re, hn::Neg(a.im)}; }
static HWY_INLINE Pair product_conj(Pair a, Pair b) {
  return {hn::MulAdd(a.im, b.im, hn::Mul(a.re, b.re)),
          hn::NegMulAdd(a.re, b.im, hn::Mul(a.im, b.re))};
}

// exp(Δ A). A product of Δ and A is rounded another way at each step; A times a factor would be off the same way at all.
static HWY_INLINE Pair decay_of(V delta, Pair A) {
  const V size = Exp(d, hn::Mul(delta, A.re));
  V sine, cosine;
  SinCosOfRadians(d, hn::Mul(delta, A.im), sine, cosine);
  return {hn::Mul(size, cosine), hn::Mul(size, sine)};
}

// As forward_states, of kStates complex states: y += 2 Re(C h), and dC += 2 g conj(h).
template <int kStates, bool kVaryB, bool kVaryC, bool kKeep>
static void forward_complex(const Pass& p) {
  for_row([&](int v) {
    Pair h[kStates];
#pragma GCC unroll 4
    for (int n = 0; n < kStates; ++n) h[n] = pair_at(p.h, n, v);
    for (int64_t t = 0; t < p.rows; ++t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      V y = at(p.y + t * kBlock, v);
#pragma GCC unroll 4
      for (int n = 0; n < kStates; ++n) {
        const Pair a = decay_of(delta, pair_at(p.A, n, v));
        if constexpr (kKeep) {
          store_pair(h[n], p.history + 2 * t * kStates * kBlock, n, v);
          store_pair(a, p.decay + 2 * t * kStates * kBlock, n, v);
        }
        h[n] = add_product(a, h[n], scaled(x, pair_of<kVaryB>(B, n, v)));
        const Pair c = pair_of<kVaryC>(C, n, v);
        y = hn::MulAdd(hn::Add(c.re, c.re), h[n].re, y);
        y = hn::NegMulAdd(hn::Add(c.im, c.im), h[n].im, y);
        if constexpr (kKeep) {
          float* dC = p.dC + t * p.dC_step;
          const V g = at(p.g + t * kBlock, v);
          store_pair(add_scaled(hn::Add(g, g), conj(h[n]), pair_at(dC, n, v)), dC, n, v);
        }
      }
      hn::StoreU(y, d, p.y + t * kBlock + v);
    }
#pragma GCC unroll 4
    for (int n = 0; n < kStates; ++n) store_pair(h[n], p.h, n, v);
  });
}

// As backward_states. k = dL/dh_t = 2 g conj(C) + conj(exp(ΔA)) k of the step after; s_B = Σ_n Re(k conj(B)),
// w = conj(exp(ΔA) h_{t-1}) k, s_A = Σ_n Re(w conj(A)), dA += Δ w, dB += k x.
template <int kStates, bool kVaryB, bool kVaryC>
static void backward_complex(const Pass& p) {
  for_row([&](int v) {
    Pair dh[kStates], dA[kStates];
#pragma GCC unroll 4
    for (int n = 0; n < kStates; ++n) {
      dh[n] = pair_at(p.dh, n, v);
      dA[n] = {hn::Zero(d), hn::Zero(d)};
    }
    for (int64_t t = p.rows - 1; t >= 0; --t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v),
              g = at(p.g + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      float* dB = p.dB + t * p.dB_step;
      V s_B = at(p.s_B + t * kBlock, v), s_A = at(p.s_A + t * kBlock, v);
#pragma GCC unroll 4
      for (int n = 0; n < kStates; ++n) {
        const Pair k = add_scaled(hn::Add(g, g), conj(pair_of<kVaryC>(C, n, v)), dh[n]);
        const Pair b = pair_of<kVaryB>(B, n, v), A = pair_at(p.A, n, v);
        store_pair(add_scaled(x, k, pair_at(dB, n, v)), dB, n, v);
        s_B = hn::MulAdd(k.re, b.re, hn::MulAdd(k.im, b.im, s_B));
        dh[n] = product_conj(k, pair_at(p.decay + 2 * t * kStates * kBlock, n, v));
        const Pair w = product_conj(dh[n], pair_at(p.history + 2 * t * kStates * kBlock, n, v));
        s_A = hn::MulAdd(w.re, A.re, hn::MulAdd(w.im, A.im, s_A));
        dA[n] = add_scaled(delta, w, dA[n]);
      }
      hn::StoreU(s_B, d, p.s_B + t * kBlock + v);
      hn::StoreU(s_A, d, p.s_A + t * kBlock + v);
    }
#pragma GCC unroll 4
    for (int n = 0; n < kStates; ++n) {
      store_pair(dh[n], p.dh, n, v);
      const Pair sum = pair_at(p.dA, n, v);
      store_pair({hn::Add(sum.re, dA[n].re), hn::Add(sum.im, dA[n].im)}, p.dA, n, v);
    }
  });
}

template <int kStates, bool kVaryB, bool kVaryC, bool kBackward>
static void complex_pass(const Pass& p) {
  forward_complex<kStates, kVaryB, kVaryC, kBackward>(p);
  if constexpr (kBackward) backward_complex<kStates, kVaryB, kVaryC>(p);
}

// As passes, of N/2 complex states.
template <bool kBackward>
static void complex_passes(const Pass& p, int64_t N, bool constant_B, bool constant_C) {
  constexpr int kMost = scan::kBackwardStates / 2;
  int64_t n = 0;
  if (!constant_B && !constant_C)
    for (; n + 2 * kMost <= N; n += 2 * kMost)
      complex_pass<kMost, true, true, kBackward>(from_state(p, n));
  for (; n < N; n += 2) {
    const Pass q = from_state(p, n);
    if (constant_B && constant_C) {
      complex_pass<1, false, false, kBackward>(q);
    } else if (constant_B) {
      complex_pass<1, false, true, kBackward>(q);
    } else if (constant_C) {
      complex_pass<1, true, false, kBackward>(q);
    } else {
      complex_pass<1, true, true, kBackward>(q);
    }
  }
}

template <bool kBackward>
static void all_passes(const Pass& p, const scan::Block& b) {
  if (b.complex)
    complex_passes<kBackward>(p, b.N, b.constant_B, b.constant_C);
  else
    passes<kBackward>(p, b.N, b.constant_B, b.constant_C);
}

}  // namespace krait::KRAIT_ISA::selective_scan
