#include <hwy/highway.h>

#include "krait/ops/s4_kernel/kernels.h"

namespace krait::KRAIT_ISA {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Doubles = hn::CappedTag<double, kS4Points>;
using V = hn::Vec<Doubles>;
constexpr Doubles d;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(d)); }
HWY_INLINE V at(const double* p, int64_t i) { return hn::LoadU(d, p + i); }
HWY_INLINE void add_sum(double* to, V v) { *to += hn::GetLane(hn::SumOfLanes(d, v)); }

void vandermonde(int64_t N, const double* re, const double* im, const double* Zr, const double* Zi,
                 double* out) {
  for (int64_t j = 0; j < kS4Tile; j += lanes()) {
    V sum = hn::Zero(d);
    for (int64_t n = 0; n < N; ++n) {
      sum = hn::MulAdd(hn::Set(d, re[n]), at(Zr + n * kS4Tile, j), sum);
      sum = hn::NegMulAdd(hn::Set(d, im[n]), at(Zi + n * kS4Tile, j), sum);
    }
    hn::StoreU(sum, d, out + j);
  }
}

void vandermonde_adjoint(int64_t N, const double* g, const double* Zr, const double* Zi,
                         double* sums) {
  for (int64_t n = 0; n < N; ++n) {
    V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t j = 0; j < kS4Tile; j += lanes()) {
      const V v = at(g, j), zr = at(Zr + n * kS4Tile, j), zi = at(Zi + n * kS4Tile, j);
      const V jv = hn::Mul(v, hn::Iota(d, static_cast<double>(j)));
      s0 = hn::MulAdd(v, zr, s0);
      s1 = hn::MulAdd(v, zi, s1);
      s2 = hn::MulAdd(jv, zr, s2);
      s3 = hn::MulAdd(jv, zi, s3);
    }
    double* const to[4] = {sums + n, sums + N + n, sums + 2 * N + n, sums + 3 * N + n};
    const V from[4] = {s0, s1, s2, s3};
    for (int i = 0; i < 4; ++i) *to[i] = hn::GetLane(hn::SumOfLanes(d, from[i]));
  }
}

// 1 / (p - y² - 2i q y)
HWY_INLINE void reciprocal(const CauchyProblem& c, int64_t n, V y, V& re, V& im) {
  const V den_re = hn::NegMulAdd(y, y, hn::Set(d, c.p[n]));
  const V den_im = hn::Mul(hn::Set(d, -2 * c.q[n]), y);
  const V s = hn::Div(hn::Set(d, 1.0), hn::MulAdd(den_re, den_re, hn::Mul(den_im, den_im)));
  re = hn::Mul(den_re, s);
  im = hn::Neg(hn::Mul(den_im, s));
}

template <int kPairs>
void cauchy_pairs(const CauchyProblem& c, double* re, double* im) {
  for (int64_t k = 0; k < c.points; k += lanes()) {
    const V y = at(c.y, k);
    V r[kPairs], i[kPairs];
    for (int m = 0; m < kPairs; ++m) r[m] = i[m] = hn::Zero(d);
    for (int64_t n = 0; n < c.N; ++n) {
      V dr, di;
      reciprocal(c, n, y, dr, di);
      for (int m = 0; m < kPairs; ++m) {
        const V alpha = hn::Set(d, c.alpha[m * c.N + n]);
        const V beta = hn::Mul(y, hn::Set(d, c.beta[m * c.N + n]));
        r[m] = hn::NegMulAdd(beta, di, hn::MulAdd(alpha, dr, r[m]));
        i[m] = hn::MulAdd(beta, dr, hn::MulAdd(alpha, di, i[m]));
      }
    }
    for (int m = 0; m < kPairs; ++m) {
      hn::StoreU(r[m], d, re + m * c.points + k);
      hn::StoreU(i[m], d, im + m * c.points + k);
    }
  }
}

// With the reciprocal w of the denominator and e_m = g_m conj(w): d alpha = Re e, d beta = y Im e, and the
// denominator's gradient is -conj(w) Σ_m e_m conj(alpha + i y beta).
template <int kPairs>
void adjoint_pairs(const CauchyProblem& c, const double* g_re, const double* g_im,
                   const CauchyGradients& out, int64_t from, int64_t to) {
  for (int64_t n = 0; n < c.N; ++n) {
    V da[kPairs], db[kPairs], dp = hn::Zero(d), dq = hn::Zero(d);
    for (int m = 0; m < kPairs; ++m) da[m] = db[m] = hn::Zero(d);
    for (int64_t k = from; k < to; k += lanes()) {
      const V y = at(c.y, k);
      V wr, wi;
      reciprocal(c, n, y, wr, wi);
      V sr = hn::Zero(d), si = hn::Zero(d);
      for (int m = 0; m < kPairs; ++m) {
        const V gr = at(g_re + m * c.points, k), gi = at(g_im + m * c.points, k);
        const V er = hn::MulAdd(gr, wr, hn::Mul(gi, wi));
        const V ei = hn::NegMulAdd(gr, wi, hn::Mul(gi, wr));
        da[m] = hn::Add(da[m], er);
        db[m] = hn::MulAdd(y, ei, db[m]);
        const V alpha = hn::Set(d, c.alpha[m * c.N + n]);
        const V beta = hn::Mul(y, hn::Set(d, c.beta[m * c.N + n]));
        sr = hn::MulAdd(er, alpha, hn::MulAdd(ei, beta, sr));
        si = hn::MulAdd(ei, alpha, hn::NegMulAdd(er, beta, si));
      }
      // -(sr + i si)(wr - i wi)
      dp = hn::Sub(dp, hn::MulAdd(sr, wr, hn::Mul(si, wi)));
      const V im = hn::NegMulAdd(si, wr, hn::Mul(sr, wi));
      dq = hn::NegMulAdd(hn::Add(y, y), im, dq);
    }
    for (int m = 0; m < kPairs; ++m) {
      add_sum(out.alpha + m * c.N + n, da[m]);
      add_sum(out.beta + m * c.N + n, db[m]);
    }
    add_sum(out.p + n, dp);
    add_sum(out.q + n, dq);
  }
}

void cauchy(const CauchyProblem& c, double* re, double* im) {
  c.pairs == 4 ? cauchy_pairs<4>(c, re, im) : cauchy_pairs<6>(c, re, im);
}

void cauchy_adjoint(const CauchyProblem& c, const double* g_re, const double* g_im,
                    const CauchyGradients& out) {
  constexpr int64_t kBlock = 512;  // points whose gradients stay in the first cache
  for (int64_t k = 0; k < c.points; k += kBlock) {
    const int64_t end = k + kBlock < c.points ? k + kBlock : c.points;
    c.pairs == 4 ? adjoint_pairs<4>(c, g_re, g_im, out, k, end)
                 : adjoint_pairs<6>(c, g_re, g_im, out, k, end);
  }
}

}  // namespace

extern const S4Kernels s4_kernels = {vandermonde, vandermonde_adjoint, cauchy, cauchy_adjoint};

}  // namespace krait::KRAIT_ISA
