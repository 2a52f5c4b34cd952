// Private to this room: the hot loops of s4_kernel, compiled once per instruction set. All in float64.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

constexpr int64_t kS4Tile = 64;    // steps whose powers are tabulated; longer ones are factored
constexpr int64_t kS4Points = 16;  // frequencies come in multiples of this
constexpr int kS4MaxPairs = 6;

// Sums over poles at many points z = iy: r_m(y) = Σ_n (alpha_mn + i y beta_mn) / (p_n - y² - 2i q_n y)
struct CauchyProblem {
  int64_t N = 0;
  int pairs = 0;
  const double *p = nullptr, *q = nullptr;
  const double *alpha = nullptr, *beta = nullptr;  // (pairs, N)
  int64_t points = 0;                              // a multiple of kS4Points
  const double* y = nullptr;
};

struct CauchyGradients {  // all added to
  double *p = nullptr, *q = nullptr;
  double *alpha = nullptr, *beta = nullptr;
};

struct S4Kernels {
  // out[j] = Σ_n re[n] Zr[n, j] - im[n] Zi[n, j], j < kS4Tile; Z (N, kS4Tile)
  void (*vandermonde)(int64_t N, const double* re, const double* im, const double* Zr,
                      const double* Zi, double* out);
  // sums (4, N) = Σ_j g[j] Zr, Σ_j g[j] Zi, Σ_j j g[j] Zr, Σ_j j g[j] Zi
  void (*vandermonde_adjoint)(int64_t N, const double* g, const double* Zr, const double* Zi,
                              double* sums);
  // re, im (pairs, points)
  void (*cauchy)(const CauchyProblem&, double* re, double* im);
  void (*cauchy_adjoint)(const CauchyProblem&, const double* g_re, const double* g_im,
                         const CauchyGradients&);
};

KRAIT_DECLARE_ISA(S4Kernels, s4_kernels)

}  // namespace krait
