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

extern const S4ScanKernels s4_scan_kernels = {run};

}  // namespace krait::KRAIT_ISA
