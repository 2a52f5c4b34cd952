// A warp a head of a sequence: a lane has every 32nd state in registers for all tokens. In float64.
#include "krait/ops/s4_scan/cuda.h"

#include "krait/ops/fft.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kWarps = 4;

__device__ double warp_sum(double x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// Re(a b)
__device__ double real_product(Complex a, Complex b) { return a.re * b.re - a.im * b.im; }

// kEach: states of a lane.
template <class T, int kEach, bool kDplr>
__global__ void __launch_bounds__(32 * kWarps) scan_kernel(const S4ScanCall c) {
  constexpr int kRows = kDplr ? 5 : 2;
  const int64_t h = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, s = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (h >= c.H) return;
  const int64_t begin = c.begin ? c.begin[s] : s * c.L,
                end = c.begin ? c.begin[s + 1] : begin + c.L;
  const int64_t in = c.begin ? c.row_in[s] : s, out = c.begin ? c.row_out[s] : s;
  Complex system[kRows][kEach], C[kEach], x[kEach];  // x: the state
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t n = lane + 32 * i;
    const bool there = n < c.N;
    const auto read = [&](const double* p) {
      return there ? Complex{p[n], p[c.row + n]} : Complex{0, 0};
    };
#pragma unroll
    for (int r = 0; r < kRows; ++r) system[r][i] = read(c.system + (h * kRows + r) * 2 * c.row);
    C[i] = read(c.C + h * 2 * c.row);
    const float* const from =
        there && c.state_in && in >= 0 ? c.state_in + ((in * c.H + h) * c.N + n) * 2 : nullptr;
    x[i] = from ? Complex{from[0], from[1]} : Complex{0, 0};
  }
  const double D = c.D[h];
  for (int64_t t = begin; t < end; ++t) {
    const double u = static_cast<float>(static_cast<const T*>(c.u)[t * c.u_stride + h]);
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
    y = 2 * warp_sum(y) + D * u;
    if (lane == 0) static_cast<T*>(c.y)[t * c.H + h] = static_cast<T>(static_cast<float>(y));
  }
  if (!c.state_out || out < 0) return;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t n = lane + 32 * i;
    if (n >= c.N) continue;
    float* const to = c.state_out + ((out * c.H + h) * c.N + n) * 2;
    to[0] = static_cast<float>(x[i].re);
    to[1] = static_cast<float>(x[i].im);
  }
}

template <class T, int kEach>
void launch(const S4ScanCall& c, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(c.H, kWarps)), static_cast<unsigned>(c.sequences));
  if (c.dplr) {
    scan_kernel<T, kEach, true><<<grid, 32 * kWarps, 0, stream>>>(c);
  } else {
    scan_kernel<T, kEach, false><<<grid, 32 * kWarps, 0, stream>>>(c);
  }
}

template <class T>
void launch_for(const S4ScanCall& c, cudaStream_t stream) {
  if (c.N <= 32) {
    launch<T, 1>(c, stream);
  } else if (c.N <= 64) {
    launch<T, 2>(c, stream);
  } else {
    launch<T, 4>(c, stream);
  }
}

}  // namespace

void s4_scan(const S4ScanCall& c, void* stream) {
  if (c.H == 0 || c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  c.bf16 ? launch_for<__nv_bfloat16>(c, s) : launch_for<float>(c, s);
  check_launch("s4_scan");
}

}  // namespace krait::cuda
