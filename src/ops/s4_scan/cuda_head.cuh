// Private to this room: a head's steps in the registers of a warp, each lane with every 32nd state.
#pragma once
#include "krait/ops/fft.cuh"
#include "krait/ops/s4_scan/cuda.h"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

struct S4Range {
  int64_t begin, end, in, out;  // tokens of a sequence, and its rows of the states
};

__device__ inline S4Range s4_range(const S4ScanCall& c, int64_t s) {
  if (!c.begin) return {s * c.L, (s + 1) * c.L, s, s};
  return {c.begin[s], c.begin[s + 1], c.row_in[s], c.row_out[s]};
}

__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// Re(a b)
__device__ inline double real_product(Complex a, Complex b) { return a.re * b.re - a.im * b.im; }

// kEach: states of a lane.
template <int kEach, bool kDplr>
struct S4Head {
  static constexpr int kRows = kDplr ? 5 : 2;
  int lane;
  int64_t h, H, N;
  Complex system[kRows][kEach], C[kEach];

  __device__ S4Head(const S4ScanCall& c, int64_t head, int in_lane)
      : lane(in_lane), h(head), H(c.H), N(c.N) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t n = lane + 32 * i;
      const auto read = [&](const double* p) {
        return n < N ? Complex{p[n], p[c.row + n]} : Complex{0, 0};
      };
#pragma unroll
      for (int r = 0; r < kRows; ++r) system[r][i] = read(c.system + (h * kRows + r) * 2 * c.row);
      C[i] = read(c.C + h * 2 * c.row);
    }
  }
  // f(i, n) for this lane's states n.
  template <class F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (lane + 32 * i < N) f(i, lane + 32 * i);
  }
  // Row `row` of states (rows, H, N, 2); zeros where there is none.
  __device__ void load(const float* states, int64_t row, Complex (&x)[kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t n = lane + 32 * i;
      const float* const from =
          n < N && states && row >= 0 ? states + ((row * H + h) * N + n) * 2 : nullptr;
      x[i] = from ? Complex{from[0], from[1]} : Complex{0, 0};
    }
  }
  // All lanes call. Returns this lane's part of Re Σ C x.
  __device__ double step(Complex (&x)[kEach], double u) const {
    double y = 0;
    if constexpr (kDplr) {
      const auto &E = system[0], &P = system[1], &F = system[2], &G = system[3], &R = system[4];
      double Qh = 0, Rw = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) Qh += real_product(conj(P[i]), x[i]);
      Qh = -2 * warp_sum(Qh);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        x[i] = E[i] * x[i] + Qh * P[i] + u * F[i];
        Rw += real_product(R[i], x[i]);
      }
      Rw = -2 * warp_sum(Rw);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        x[i] = G[i] * (x[i] + Rw * P[i]);
        y += real_product(C[i], x[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        x[i] = system[0][i] * x[i] + u * system[1][i];
        y += real_product(C[i], x[i]);
      }
    }
    return y;
  }
};

}  // namespace krait::cuda
