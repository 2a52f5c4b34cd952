// Backward of s4_scan on the GPU, in float64: a warp a head of a sequence, forwards once for the states at every
// kKept-th step, then backwards stretch by stretch. Sums over sequences in their order.
#include "krait/ops/s4_scan/cuda.h"
#include "krait/ops/s4_scan/cuda_head.cuh"

namespace krait::cuda {

namespace {

constexpr int kKept = 16;  // steps of a stretch

// The parts of S4ScanAdjoint::work.
struct Work {
  double *kept, *sums, *dD, *dstate;  // dstate: of the state before each sequence
  int64_t doubles;
};

Work work_of(const S4ScanAdjoint& a) {
  const S4ScanCall& c = a.c;
  const int64_t vectors = c.dplr ? 6 : 3;
  double* next = a.work;
  int64_t doubles = 0;
  const auto take = [&](int64_t n) {
    double* const p = next;
    if (next) next += n;
    doubles += n;
    return p;
  };
  Work w{};
  w.kept = take((a.tokens / kKept + c.sequences + 1) * c.H * c.N * 2);
  w.sums = take(c.sequences * c.H * vectors * 2 * c.row);
  w.dD = take(c.sequences * c.H);
  w.dstate = take(c.sequences * c.H * c.N * 2);
  w.doubles = doubles;
  return w;
}

// What the steps of one head are given: the system, then C.
template <int kEach, bool kDplr>
struct Gradients {
  Complex system[kDplr ? 5 : 2][kEach], C[kEach];
};

// One step back: x is the state before it, g goes from the gradient of the state after it to that of x. Returns
// what u is given but for the skip. See cpu_simd.cpp.
template <int kEach, bool kDplr>
__device__ double step_back(const S4Head<kEach, kDplr>& s, const Complex (&x)[kEach], double u,
                            double dy, Complex (&g)[kEach], Gradients<kEach, kDplr>& d) {
  double du = 0;
  if constexpr (!kDplr) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Complex decay = s.system[0][i], drive = s.system[1][i];
      const Complex after = decay * x[i] + u * drive;
      g[i] += 2 * dy * conj(s.C[i]);
      d.C[i] += 2 * dy * conj(after);
      d.system[0][i] += g[i] * conj(x[i]);
      d.system[1][i] += u * g[i];
      du += real_product(g[i], conj(drive));
      g[i] = g[i] * conj(decay);
    }
    return warp_sum(du);
  } else {
    const auto &E = s.system[0], &P = s.system[1], &F = s.system[2], &G = s.system[3],
               &R = s.system[4];
    Complex w[kEach];
    double q = 0, rho = 0, g_rho = 0, g_q = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) q += real_product(conj(P[i]), x[i]);
    q = 2 * warp_sum(q);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      w[i] = E[i] * x[i] + -q * P[i] + u * F[i];
      rho += real_product(R[i], w[i]);
    }
    rho = 2 * warp_sum(rho);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Complex v = w[i] + -rho * P[i];
      g[i] += 2 * dy * conj(s.C[i]);
      d.C[i] += 2 * dy * conj(G[i] * v);
      d.system[3][i] += g[i] * conj(v);
      g[i] = g[i] * conj(G[i]);
      d.system[1][i] += -rho * g[i];
      g_rho -= real_product(g[i], conj(P[i]));
    }
    g_rho = 2 * warp_sum(g_rho);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      g[i] += g_rho * conj(R[i]);
      d.system[4][i] += g_rho * conj(w[i]);
      d.system[0][i] += g[i] * conj(x[i]);
      d.system[2][i] += u * g[i];
      d.system[1][i] += -q * g[i];
      du += real_product(g[i], conj(F[i]));
      g_q -= real_product(g[i], conj(P[i]));
    }
    du = warp_sum(du);
    g_q = 2 * warp_sum(g_q);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      d.system[1][i] += g_q * x[i];
      g[i] = g[i] * conj(E[i]) + g_q * P[i];
    }
    return du;
  }
}

template <class T, int kEach, bool kDplr>
__global__ void __launch_bounds__(128 / kEach)
    adjoint_kernel(const S4ScanAdjoint a, const Work work) {
  constexpr int kWarps = 4 / kEach, kRows = kDplr ? 5 : 2;
  __shared__ Complex stretch[kWarps][kKept][32 * kEach];
  const S4ScanCall& c = a.c;
  const int64_t h = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, s = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (h >= c.H) return;
  Complex(&states)[kKept][32 * kEach] = stretch[threadIdx.x / 32];
  const S4Head<kEach, kDplr> head(c, h, lane);
  const S4Range range = s4_range(c, s);
  auto* const kept = reinterpret_cast<Complex*>(work.kept) +
                     ((range.begin / kKept + s) * c.H + h) * c.N;  // a stretch is H N further
  const auto input = [&](int64_t t) {
    return static_cast<double>(static_cast<float>(static_cast<const T*>(c.u)[t * c.u_stride + h]));
  };
  Complex x[kEach], g[kEach];
  head.load(c.state_in, range.in, x);
  head.load(a.dstate_out, range.out, g);
  for (int64_t t = range.begin; t < range.end; ++t) {
    if ((t - range.begin) % kKept == 0)
      head.each([&](int i, int64_t n) { kept[(t - range.begin) / kKept * c.H * c.N + n] = x[i]; });
    head.step(x, input(t));
  }
  Gradients<kEach, kDplr> d = {};
  const double D = c.D[h];
  double dD = 0;
  const int64_t stretches = (range.end - range.begin + kKept - 1) / kKept;
  for (int64_t k = stretches - 1; k >= 0; --k) {
    const int64_t begin = range.begin + k * kKept, end = min(begin + kKept, range.end);
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = {0, 0};
    head.each([&](int i, int64_t n) { x[i] = kept[k * c.H * c.N + n]; });
    for (int64_t t = begin; t < end; ++t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) states[t - begin][lane + 32 * i] = x[i];
      head.step(x, input(t));
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      const double u = input(t), dy = a.dy ? static_cast<double>(static_cast<float>(
                                                 static_cast<const T*>(a.dy)[t * c.H + h]))
                                           : 0.0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) x[i] = states[t - begin][lane + 32 * i];
      const double du = step_back(head, x, u, dy, g, d) + D * dy;
      dD += u * dy;
      if (!a.du || lane > 0) continue;
      T& to = static_cast<T*>(a.du)[t * a.du_stride + h];
      const auto value = static_cast<float>(du);
      to = static_cast<T>(a.du_add ? static_cast<float>(to) + value : value);
    }
  }
  double* const sums = work.sums + (s * c.H + h) * (kRows + 1) * 2 * c.row;
  auto* const dstate = reinterpret_cast<Complex*>(work.dstate) + (s * c.H + h) * c.N;
  head.each([&](int i, int64_t n) {
#pragma unroll
    for (int r = 0; r <= kRows; ++r) {
      const Complex v = r < kRows ? d.system[r < kRows ? r : 0][i] : d.C[i];
      sums[r * 2 * c.row + n] = v.re;
      sums[r * 2 * c.row + c.row + n] = v.im;
    }
    dstate[n] = g[i];
  });
  if (lane == 0) work.dD[s * c.H + h] = dD;
}

// sums (H, vectors, 2, row) and dD, over the sequences; zeros behind the N states.
__global__ void sum_kernel(const S4ScanAdjoint a, const Work work, int64_t size) {
  const S4ScanCall& c = a.c;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < c.H * size) {
    double sum = 0;
    for (int64_t s = 0; s < c.sequences && i % c.row < c.N; ++s)
      sum += work.sums[s * c.H * size + i];
    a.sums[i] = sum;
  }
  if (i < c.H && a.dD) {
    double sum = 0;
    for (int64_t s = 0; s < c.sequences; ++s) sum += work.dD[s * c.H + i];
    a.dD[i] = static_cast<float>(sum) + (a.dD_add ? a.dD[i] : 0.0f);
  }
}

// A row of the states in may have started several sequences, or none.
__global__ void states_kernel(const S4ScanAdjoint a, const Work work) {
  const S4ScanCall& c = a.c;
  const int64_t size = c.H * c.N * 2, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= a.state_rows * size) return;
  float sum = a.dstate_add ? a.dstate_in[i] : 0.0f;
  for (int64_t s = 0; s < c.sequences; ++s)
    if (s4_range(c, s).in == i / size) sum += static_cast<float>(work.dstate[s * size + i % size]);
  a.dstate_in[i] = sum;
}

template <class T, int kEach>
void launch(const S4ScanAdjoint& a, const Work& work, cudaStream_t stream) {
  constexpr int kWarps = 4 / kEach;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.c.H, kWarps)),
                  static_cast<unsigned>(a.c.sequences));
  if (a.c.dplr) {
    adjoint_kernel<T, kEach, true><<<grid, 32 * kWarps, 0, stream>>>(a, work);
  } else {
    adjoint_kernel<T, kEach, false><<<grid, 32 * kWarps, 0, stream>>>(a, work);
  }
}

template <class T>
void launch_for(const S4ScanAdjoint& a, const Work& work, cudaStream_t stream) {
  if (a.c.N <= 32) {
    launch<T, 1>(a, work, stream);
  } else if (a.c.N <= 64) {
    launch<T, 2>(a, work, stream);
  } else {
    launch<T, 4>(a, work, stream);
  }
}

}  // namespace

int64_t s4_scan_adjoint_work(const S4ScanAdjoint& a) { return work_of(a).doubles; }

void s4_scan_adjoint(const S4ScanAdjoint& a, void* stream) {
  const S4ScanCall& c = a.c;
  if (c.H == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const Work work = work_of(a);
  const auto blocks = [](int64_t n) { return static_cast<unsigned>(ceil_div(n, 256)); };
  if (c.sequences > 0)
    c.bf16 ? launch_for<__nv_bfloat16>(a, work, s) : launch_for<float>(a, work, s);
  const int64_t size = (c.dplr ? 6 : 3) * 2 * c.row;
  sum_kernel<<<blocks(c.H * size), 256, 0, s>>>(a, work, size);
  if (a.dstate_in && a.state_rows > 0)
    states_kernel<<<blocks(a.state_rows * c.H * c.N * 2), 256, 0, s>>>(a, work);
  check_launch("s4_scan backward");
}

}  // namespace krait::cuda
