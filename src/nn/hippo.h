// Initial systems of S4 and S4D, in float64. N is the number of complex states kept, one of each conjugate
// pair: half of d_state.
#pragma once
#include <complex>
#include <string>
#include <vector>

namespace krait::nn {

struct InitialSystem {
  std::vector<std::complex<double>> A, B;
  std::vector<std::complex<double>> P;  // legs: A stands for diag(A) - P Pᴴ
};

// HiPPO-LegS (Gu et al. 2020) of size 2N in the form normal plus low rank (S4, appendix C.2 there): the
// eigenvalues of A + P Pᵀ with negative imaginary part, ascending, B and P in the basis of its
// eigenvectors, whose first row is made real and positive. The imaginary part of B is cut at ±2, as in
// every published model; P is not.
InitialSystem hippo_legs(int64_t N);

// HiPPO-FouT (Gu et al. 2022, "How to Train Your HiPPO"), likewise: waves of whole and half periods, which do not
// decay but for P.
InitialSystem hippo_fout(int64_t N);

// "lin", "inv", "real" (S4D, section 4), and "inv2" and "quad" of its ablations: B = 1. "legs": hippo_legs without P.
InitialSystem s4d_initial(const std::string& kind, int64_t N);

}  // namespace krait::nn
