// K[64 i + j] = 2 Re Σ_n (C'_n Ā_n^{64 i}) Ā_n^j: a product of two small tables for each head.
#include <algorithm>

#include "krait/ops/s4_kernel/kernels.h"
#include "krait/ops/s4_kernel/system.h"

namespace krait::ops::s4 {
namespace {

// Tables of one head: Zr, Zi (N, 64) the powers of Ā, then room for one row of 64 and for sums (4, N).
struct Tables {
  double *Zr, *Zi, *row, *sums;
  Discrete step[kMaxStates];
  Complex stride[kMaxStates];  // Ā^64

  Tables(const S4Options& o, const Sizes& z, const Head& s, double* work)
      : Zr(work), Zi(Zr + z.N * kS4Tile), row(Zi + z.N * kS4Tile), sums(row + kS4Tile) {
    for (int64_t n = 0; n < z.N; ++n) {
      step[n] = discretise(o, s.dt, s.A[n]);
      Complex power = 1;
      for (int64_t j = 0; j < kS4Tile; ++j, power *= step[n].decay) {
        Zr[n * kS4Tile + j] = power.real();
        Zi[n * kS4Tile + j] = power.imag();
      }
      stride[n] = power;
    }
  }
};

}  // namespace

int64_t diagonal_work(const Sizes& z, int64_t) { return 2 * z.N * kS4Tile + kS4Tile + 4 * z.N; }

void diagonal_forward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                      Rows K, double* work) {
  const S4Kernels& kernels = KRAIT_PICK_ISA(s4_kernels);
  const Head s = head(p, o, z, h);
  const Tables t(o, z, s, work);
  double re[kMaxStates], im[kMaxStates];
  for (int64_t c = 0; c < z.channels; ++c) {
    Complex w[kMaxStates];
    for (int64_t n = 0; n < z.N; ++n) w[n] = 2.0 * c_of(p, z, c, h, n) * s.B[n] * t.step[n].q;
    float* const out = K.data + c * K.stride;
    for (int64_t l = 0; l < L; l += kS4Tile) {
      for (int64_t n = 0; n < z.N; ++n) {
        re[n] = w[n].real();
        im[n] = w[n].imag();
        w[n] *= t.stride[n];
      }
      kernels.vandermonde(z.N, re, im, t.Zr, t.Zi, t.row);
      for (int64_t j = 0; j < std::min(kS4Tile, L - l); ++j)
        out[l + j] = static_cast<float>(t.row[j]);
    }
  }
}

void diagonal_backward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                       Rows dK, double* work, HeadGradients& g) {
  const S4Kernels& kernels = KRAIT_PICK_ISA(s4_kernels);
  const Head s = head(p, o, z, h);
  const Tables t(o, z, s, work);
  for (int64_t c = 0; c < z.channels; ++c) {
    // M = Σ_l dK[l] Ā^l and M1 = Σ_l l dK[l] Ā^l
    Complex w[kMaxStates], M[kMaxStates], M1[kMaxStates];
    std::fill_n(w, z.N, Complex(1));
    std::fill_n(M, z.N, Complex(0));
    std::fill_n(M1, z.N, Complex(0));
    const float* const in = dK.data + c * dK.stride;
    for (int64_t l = 0; l < L; l += kS4Tile) {
      for (int64_t j = 0; j < kS4Tile; ++j) t.row[j] = l + j < L ? in[l + j] : 0.0;
      kernels.vandermonde_adjoint(z.N, t.row, t.Zr, t.Zi, t.sums);
      for (int64_t n = 0; n < z.N; ++n) {
        const Complex m(t.sums[n], t.sums[z.N + n]);
        const Complex m1(t.sums[2 * z.N + n], t.sums[3 * z.N + n]);
        M[n] += w[n] * m;
        M1[n] += w[n] * (static_cast<double>(l) * m + m1);
        w[n] *= t.stride[n];
      }
    }
    for (int64_t n = 0; n < z.N; ++n) {
      const Complex C = c_of(p, z, c, h, n), B = s.B[n], q = t.step[n].q;
      const Complex g_c = 2.0 * std::conj(M[n]);                 // of C' = C B q
      const Complex g_log = 2.0 * std::conj(C * B * q * M1[n]);  // of log Ā
      g.C[c * z.N + n] = g_c * std::conj(B * q);
      g.B[n] += g_c * std::conj(C * q);
      add_discrete_gradients(o, s, n, t.step[n], g_log, g_c * std::conj(C * B), g);
    }
  }
}

}  // namespace krait::ops::s4
