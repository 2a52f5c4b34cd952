// s4_kernel: the convolution kernel of H independent linear state-space models, from their parameters.
//
//   Δ = exp(inv_dt) (or softplus)      A_n = -exp(A_real) - i A_imag      n < N, conjugates implicit
//
// Diagonal (S4D; no P), with Ā = exp(ΔA), C' = C B (Ā - 1)/A (zero-order hold), or bilinear
// Ā = (1 + ΔA/2)/(1 - ΔA/2), C' = C B Δ/(1 - ΔA/2):
//   K[l] = 2 Re Σ_n C'_n Ā_n^l
//
// DPLR (S4), state matrix diag(A) - P Pᴴ, bilinear, by its generating function at the roots of unity:
//   r_xy(z) = Σ_n v_n/(z - ΔA_n) + v̄_n/(z - ΔĀ_n),  v = Δ x y      z = 2(1-ω)/(1+ω), ω = exp(-2πi k/T)
//   k̂ = (r_BC - r_BP̄ r_PC/(1 + r_PP̄)) · 2/(1+ω)       K = irfft(k̂, T), cut to L
// where T = `length`, and C stands for C (I - Ā^T): it is attuned to that length (s4_attune).
//
//   inv_dt (H) or (H, 1)           float32, as all
//   A_real, A_imag (S, N)          N <= 128; head h uses row h mod S
//   B (1, S, N, 2)                 (re, im); optional for diagonal ones: 1
//   C (channels, H, N, 2)
//   P (1, S, N, 2)                 given: DPLR, rank 1
//   K (channels, H, L)             float32
//
// Computed in float64, rounded once. Gradients for all parameters, summed over heads in a fixed order; a
// complex one is dL/dre + i dL/dim. Saved for backward: nothing but the inputs.
// Gu, Goel, Ré 2021 (S4), section 3; Gu, Gupta, Goel, Ré 2022 (S4D), section 3.
#pragma once
#include <memory>
#include <vector>

#include "krait/tensor/context.h"

namespace krait::ops {

struct S4Params {
  Tensor inv_dt, A_real, A_imag, B, C, P;
};

struct S4Options {
  bool softplus_dt = false;
  bool positive_imag = false;  // A = -exp(A_real) + i A_imag, as the minimal S4D has it
  bool bilinear = false;       // of diagonal ones; DPLR always is
  int64_t length = 0;          // DPLR: what C is attuned to; 0: not yet, no kernel can be made
};

Tensor s4_kernel(Context& c, const S4Params& p, const S4Options& o, int64_t L);

// C (DPLR) in place from attuned to length `from` (0: to none) to `to`, a multiple of `from`:
// C (I - Ā^from)^-1 (I - Ā^to). float64 inside, on the host.
void s4_attune(const S4Params& p, const S4Options& o, int64_t to);

// One step of each head: what ops/s4_scan runs. Diagonal: h' = Ā h + B̄ u, y = 2 Re Σ C h'. DPLR: with
// w = E h - P (2 Re Σ Q h) + F u, h' = G (w - P (2 Re Σ R w)), y = 2 Re Σ C h'; Q = conj P.
// Vectors of one head: a row of real parts, then one of imaginary ones, zeros behind the N states.
struct S4Steps {
  bool dplr = false;
  int64_t H = 0, N = 0, channels = 0;
  int64_t row = 0;             // N rounded up to a multiple of 8
  std::vector<double> system;  // (H, rows, 2, row); diagonal: Ā, B̄; DPLR: E, P, F, G, R
  std::vector<double> C;       // (channels, H, 2, row), not attuned
  std::shared_ptr<DeviceMemory>
      memory;  // of a GPU, where the parameters are on one: `system`, then `C`

  int64_t rows() const { return dplr ? 5 : 2; }
};

// On a GPU in the memory of those `before`, if given and of the same sizes.
S4Steps s4_steps(const S4Params& p, const S4Options& o, const S4Steps* before = nullptr);

// Gradients of the parameters, as they are stored; B and P empty where there are none.
struct S4Gradients {
  std::vector<float> inv_dt, A_real, A_imag, B, C, P;
};

// From those of the steps, in the layout of S4Steps; `dC` is of C as it is stored. In float64 on the host; a
// complex one is dL/dre + i dL/dim.
S4Gradients s4_steps_gradients(const S4Params& p, const S4Options& o,
                               const std::vector<double>& dsystem, const std::vector<double>& dC);

// DPLR: the gradient of the attuned C̃ = C (I - Ā^T) from that of C, in the layout of S4Steps. With conj of it
// as a state h, what is left of the chain is that of Re(C Ā^T h) through Ā alone.
std::vector<double> s4_attuned_gradient(const S4Params& p, const S4Options& o,
                                        const std::vector<double>& dC);

}  // namespace krait::ops
