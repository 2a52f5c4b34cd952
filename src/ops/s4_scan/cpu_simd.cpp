#include "krait/ops/s4_scan/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

using Doubles = hn::CappedTag<double, kS4RowMultiple>;
using W = hn::Vec<Doubles>;
constexpr Doubles dd;

HWY_INLINE W at(const double* p, int64_t i) { return hn::LoadU(dd, p + i); }
HWY_INLINE double total(W v) { return hn::GetLane(hn::SumOfLanes(dd, v)); }

struct Complex {
  W re, im;
};
HWY_INLINE Complex load_complex(const double* p, int64_t row, int64_t n) {
  return {at(p, n), at(p + row, n)};
}
HWY_INLINE void store_complex(Complex v, double* p, int64_t row, int64_t n) {
  hn::StoreU(v.re, dd, p + n);
  hn::StoreU(v.im, dd, p + row + n);
}
// a b
HWY_INLINE Complex product(Complex a, Complex b) {
  return {hn::NegMulAdd(a.im, b.im, hn::Mul(a.re, b.re)),
          hn::MulAdd(a.im, b.re, hn::Mul(a.re, b.im))};
}
// v + a s
HWY_INLINE Complex add_scaled(Complex a, W s, Complex v) {
  return {hn::MulAdd(a.re, s, v.re), hn::MulAdd(a.im, s, v.im)};
}
// sum + Re(a b)
HWY_INLINE W add_real_product(Complex a, Complex b, W sum) {
  return hn::NegMulAdd(a.im, b.im, hn::MulAdd(a.re, b.re, sum));
}

// a conj(b)
HWY_INLINE Complex product_conj(Complex a, Complex b) {
  return {hn::MulAdd(a.im, b.im, hn::Mul(a.re, b.re)),
          hn::NegMulAdd(a.re, b.im, hn::Mul(a.im, b.re))};
}
HWY_INLINE Complex conj(Complex a) { return {a.re, hn::Neg(a.im)}; }
HWY_INLINE Complex add(Complex a, Complex b) { return {hn::Add(a.re, b.re), hn::Add(a.im, b.im)}; }
// a s
HWY_INLINE Complex scaled(Complex a, W s) { return {hn::Mul(a.re, s), hn::Mul(a.im, s)}; }
// sum + Re(a conj(b))
HWY_INLINE W add_real_conj(Complex a, Complex b, W sum) {
  return hn::MulAdd(a.im, b.im, hn::MulAdd(a.re, b.re, sum));
}

HWY_INLINE double diagonal_step(const S4Run& r, double u) {
  const int64_t row = r.row;
  W y = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += static_cast<int64_t>(hn::Lanes(dd))) {
    const Complex decay = load_complex(r.system, row, n);
    const Complex drive = load_complex(r.system + 2 * row, row, n);
    const Complex h = add_scaled(drive, hn::Set(dd, u), product(decay, load_complex(r.h, row, n)));
    store_complex(h, r.h, row, n);
    y = add_real_product(load_complex(r.C, row, n), h, y);
  }
  return 2 * total(y);
}

HWY_INLINE double dplr_step(const S4Run& r, double u) {
  const int64_t row = r.row, step = static_cast<int64_t>(hn::Lanes(dd));
  const double *E = r.system, *P = E + 2 * row, *F = P + 2 * row, *G = F + 2 * row,
               *R = G + 2 * row;
  W Qh = hn::Zero(dd);  // Re(conj(P) h)
  for (int64_t n = 0; n < row; n += step) {
    const Complex p = load_complex(P, row, n), h = load_complex(r.h, row, n);
    Qh = hn::MulAdd(p.im, h.im, hn::MulAdd(p.re, h.re, Qh));
  }
  const W minus_Qh = hn::Set(dd, -2 * total(Qh));
  W Rw = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step) {
    Complex w = product(load_complex(E, row, n), load_complex(r.h, row, n));
    w = add_scaled(load_complex(P, row, n), minus_Qh, w);
    w = add_scaled(load_complex(F, row, n), hn::Set(dd, u), w);
    store_complex(w, r.h, row, n);
    Rw = add_real_product(load_complex(R, row, n), w, Rw);
  }
  const W minus_Rw = hn::Set(dd, -2 * total(Rw));
  W y = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step) {
    const Complex w = add_scaled(load_complex(P, row, n), minus_Rw, load_complex(r.h, row, n));
    const Complex h = product(load_complex(G, row, n), w);
    store_complex(h, r.h, row, n);
    y = add_real_product(load_complex(r.C, row, n), h, y);
  }
  return 2 * total(y);
}

template <class T>
void run_typed(const S4Run& r) {
  const T* u = static_cast<const T*>(r.u);
  T* y = static_cast<T*>(r.y);
  for (int64_t t = 0; t < r.L; ++t) {
    const double x = hn::GetLane(load(OneLane(), u + t * r.u_stride));
    const double v = (r.dplr ? dplr_step(r, x) : diagonal_step(r, x)) + r.D * x;
    store(OneLane(), hn::Set(OneLane(), static_cast<float>(v)), y + t * r.y_stride);
  }
}

void run(const S4Run& r) { r.bf16 ? run_typed<bf16>(r) : run_typed<float>(r); }

}  // namespace

// v += a, in memory
HWY_INLINE void accumulate(Complex a, double* v, int64_t row, int64_t n) {
  store_complex(add(load_complex(v, row, n), a), v, row, n);
}

// One step back: `h` is the state before it, g goes from the gradient of the state after it to that of h; what
// the system and C are given is added up. Gradients of complex numbers are dL/dre + i dL/dim.
HWY_INLINE double diagonal_adjoint(const S4Adjoint& r, const double* h, double u, double dy) {
  const int64_t row = r.row;
  const W two_dy = hn::Set(dd, 2 * dy), x = hn::Set(dd, u);
  W du = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += static_cast<int64_t>(hn::Lanes(dd))) {
    const Complex decay = load_complex(r.system, row, n), before = load_complex(h, row, n);
    const Complex drive = load_complex(r.system + 2 * row, row, n);
    const Complex after = add_scaled(drive, x, product(decay, before));
    const Complex g =
        add_scaled(conj(load_complex(r.C, row, n)), two_dy, load_complex(r.g, row, n));
    accumulate(scaled(conj(after), two_dy), r.dC, row, n);
    accumulate(product_conj(g, before), r.dsystem, row, n);
    accumulate(scaled(g, x), r.dsystem + 2 * row, row, n);
    du = add_real_conj(g, drive, du);
    store_complex(product_conj(g, decay), r.g, row, n);
  }
  return total(du);
}

HWY_INLINE double dplr_adjoint(const S4Adjoint& r, const double* h, double u, double dy) {
  const int64_t row = r.row, step = static_cast<int64_t>(hn::Lanes(dd));
  const double *E = r.system, *P = E + 2 * row, *F = P + 2 * row, *G = F + 2 * row,
               *R = G + 2 * row;
  double *dE = r.dsystem, *dP = dE + 2 * row, *dF = dP + 2 * row, *dG = dF + 2 * row,
         *dR = dG + 2 * row;
  double w[2 * kS4MaxRow], gv[2 * kS4MaxRow];
  const W x = hn::Set(dd, u), two_dy = hn::Set(dd, 2 * dy);
  // The step again: q = 2 Re Σ P̄ h, w = E h - P q + F u, ρ = 2 Re Σ R w, v = w - P ρ, h' = G v.
  W sum = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step)
    sum = add_real_conj(load_complex(h, row, n), load_complex(P, row, n), sum);
  const double q = 2 * total(sum);
  sum = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step) {
    Complex a = product(load_complex(E, row, n), load_complex(h, row, n));
    a = add_scaled(load_complex(P, row, n), hn::Set(dd, -q), a);
    a = add_scaled(load_complex(F, row, n), x, a);
    store_complex(a, w, row, n);
    sum = add_real_product(load_complex(R, row, n), a, sum);
  }
  const double rho = 2 * total(sum);
  W g_rho = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step) {
    const Complex p = load_complex(P, row, n), up = load_complex(G, row, n);
    const Complex v = add_scaled(p, hn::Set(dd, -rho), load_complex(w, row, n));
    const Complex after = product(up, v);
    const Complex g =
        add_scaled(conj(load_complex(r.C, row, n)), two_dy, load_complex(r.g, row, n));
    accumulate(scaled(conj(after), two_dy), r.dC, row, n);
    accumulate(product_conj(g, v), dG, row, n);
    const Complex back = product_conj(g, up);
    store_complex(back, gv, row, n);
    accumulate(scaled(back, hn::Set(dd, -rho)), dP, row, n);
    g_rho = add_real_conj(back, p, g_rho);
  }
  const W two_g_rho = hn::Set(dd, -2 * total(g_rho));
  W du = hn::Zero(dd), g_q = hn::Zero(dd);
  for (int64_t n = 0; n < row; n += step) {
    const Complex p = load_complex(P, row, n), of_w = load_complex(w, row, n);
    const Complex gw =
        add_scaled(conj(load_complex(R, row, n)), two_g_rho, load_complex(gv, row, n));
    store_complex(gw, gv, row, n);
    accumulate(scaled(conj(of_w), two_g_rho), dR, row, n);
    accumulate(product_conj(gw, load_complex(h, row, n)), dE, row, n);
    accumulate(scaled(gw, x), dF, row, n);
    accumulate(scaled(gw, hn::Set(dd, -q)), dP, row, n);
    du = add_real_conj(gw, load_complex(F, row, n), du);
    g_q = add_real_conj(gw, p, g_q);
  }
  const W two_g_q = hn::Set(dd, -2 * total(g_q));
  for (int64_t n = 0; n < row; n += step) {
    const Complex before = load_complex(h, row, n);
    accumulate(scaled(before, two_g_q), dP, row, n);
    const Complex g = product_conj(load_complex(gv, row, n), load_complex(E, row, n));
    store_complex(add_scaled(load_complex(P, row, n), two_g_q, g), r.g, row, n);
  }
  return total(du);
}

// Forwards once for the states at every kS4Kept-th step; then backwards, each stretch forwards again for the
// states before its steps.
void adjoint(const S4Adjoint& r) {
  S4Run run;
  run.dplr = r.dplr;
  run.row = r.row;
  run.system = r.system;
  run.C = r.C;
  run.h = r.h;
  const int64_t size = 2 * r.row, stretches = (r.L + kS4Kept - 1) / kS4Kept;
  double* const each = r.work + stretches * size;
  const auto input = [&](const double* p, int64_t t) { return p ? p[t] : 0.0; };
  const auto forward = [&](int64_t t) {
    r.dplr ? dplr_step(run, input(r.u, t)) : diagonal_step(run, input(r.u, t));
  };
  const auto copy = [size](const double* from, double* to) {
    for (int64_t i = 0; i < size; ++i) to[i] = from[i];
  };
  for (int64_t t = 0; t < r.L; ++t) {
    if (t % kS4Kept == 0) copy(r.h, r.work + t / kS4Kept * size);
    forward(t);
  }
  for (int64_t s = stretches - 1; s >= 0; --s) {
    const int64_t begin = s * kS4Kept, end = begin + kS4Kept < r.L ? begin + kS4Kept : r.L;
    copy(r.work + s * size, r.h);
    for (int64_t t = begin; t < end; ++t) {
      copy(r.h, each + (t - begin) * size);
      forward(t);
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      const double* const before = each + (t - begin) * size;
      const double u = input(r.u, t), dy = input(r.dy, t);
      const double du =
          r.dplr ? dplr_adjoint(r, before, u, dy) : diagonal_adjoint(r, before, u, dy);
      if (r.du) r.du[t] = du + r.D * dy;
      if (r.dD) *r.dD += u * dy;
    }
  }
}

extern const S4ScanKernels s4_scan_kernels = {run, adjoint};

}  // namespace krait::KRAIT_ISA
