// Private to this room: one head's system in float64, and the gradients of all of them before they are
// summed over heads.
#pragma once
#include <complex>

#include "krait/ops/s4_kernel/s4_kernel.h"

namespace krait::ops::s4 {

using Complex = std::complex<double>;
constexpr int64_t kMaxStates = 128;

struct Sizes {
  int64_t H = 0, S = 0, N = 0, channels = 0;
  bool dplr = false;
};

Sizes check(const S4Params& p, const S4Options& o);

struct Head {
  double dt = 0, dt_slope = 0;  // Δ and dΔ/d inv_dt
  Complex A[kMaxStates], B[kMaxStates], P[kMaxStates];
};

Head head(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h);
inline Complex c_of(const S4Params& p, const Sizes& z, int64_t channel, int64_t h, int64_t n) {
  const float* at = p.C.as<float>() + ((channel * z.H + h) * z.N + n) * 2;
  return {at[0], at[1]};
}

// Gradients of one head with respect to Δ and complex A, B, P, C: dL/dre + i dL/dim.
struct HeadGradients {
  double dt = 0;
  Complex A[kMaxStates], B[kMaxStates], P[kMaxStates];
  Complex* C = nullptr;  // (channels, N)
};

// One job's memory for a kernel of L steps, in doubles; used by one head after the other.
int64_t diagonal_work(const Sizes& z, int64_t L);
int64_t dplr_work(const Sizes& z, int64_t length);

// K: channels rows of L floats, `stride` apart.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;
};

void diagonal_forward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                      Rows K, double* work);
void diagonal_backward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                       Rows dK, double* work, HeadGradients& g);
void dplr_forward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                  Rows K, double* work);
void dplr_backward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                   Rows dK, double* work, HeadGradients& g);

// q with C' = C B q, and Ā.
struct Discrete {
  Complex decay, q;
};
Discrete discretise(const S4Options& o, double dt, Complex A);
// What Δ and A of state n get from the gradients of log Ā and q.
void add_discrete_gradients(const S4Options& o, const Head& s, int64_t n, const Discrete& step,
                            Complex g_log, Complex g_q, HeadGradients& g);

}  // namespace krait::ops::s4
