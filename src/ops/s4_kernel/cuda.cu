// s4_kernel on the GPU: the formulas of diagonal.cpp and dplr.cpp, a block a head.
#include "krait/ops/s4_kernel/cuda.h"

#include <algorithm>

#include "krait/ops/fft.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256, kStates = kS4MaxStates, kMaxPairs = 6;
constexpr int64_t kTile = 64, kTiles = 16;  // of a block of a diagonal kernel
constexpr int64_t kMostBlocks = 264;        // of DPLR ones, each with scratch memory of its own

__device__ double dt_of(const S4Call& c, int64_t h) {
  const double x = c.inv_dt[h];
  return c.softplus_dt ? (x > 20 ? x : log1p(exp(x))) : exp(x);
}

__device__ double dt_slope_of(const S4Call& c, int64_t h) {
  const double x = c.inv_dt[h];
  return c.softplus_dt ? 1 / (1 + exp(-x)) : exp(x);
}

__device__ Complex pair_at(const float* p, int64_t i) { return {p[2 * i], p[2 * i + 1]}; }

__device__ Complex A_of(const S4Call& c, int64_t h, int64_t n) {
  const int64_t at = h % c.S * c.N + n;
  const double im = c.A_imag[at];
  return {-exp(static_cast<double>(c.A_real[at])), c.positive_imag ? im : -im};
}
__device__ Complex B_of(const S4Call& c, int64_t h, int64_t n) {
  return c.B ? pair_at(c.B, h % c.S * c.N + n) : Complex{1, 0};
}
__device__ Complex P_of(const S4Call& c, int64_t h, int64_t n) {
  return pair_at(c.P, h % c.S * c.N + n);
}
__device__ Complex C_of(const S4Call& c, int64_t channel, int64_t h, int64_t n) {
  return pair_at(c.C, (channel * c.H + h) * c.N + n);
}

__device__ Complex exp_of(Complex a) {
  double s, co;
  sincos(a.im, &s, &co);
  return exp(a.re) * Complex{co, s};
}

constexpr Complex kOne = {1, 0};

// q with C' = C B q, and Ā.
struct Discrete {
  Complex decay, q;
};
__device__ Discrete discretise(const S4Call& c, double dt, Complex A) {
  const Complex a = dt * A;
  if (c.bilinear) {
    const Complex m = kOne / (kOne - 0.5 * a);
    return {(kOne + 0.5 * a) * m, dt * m};
  }
  const Complex decay = exp_of(a);
  return {decay, (decay - kOne) / A};
}

__device__ Complex power(Complex x, int64_t n) {
  Complex r = kOne;
  for (; n > 0; n /= 2, x = x * x)
    if (n % 2 == 1) r = r * x;
  return r;
}

// K[64 i + j] = 2 Re Σ_n (C'_n Ā_n^{64 i}) Ā_n^j. A block: kTiles values of i of one head.
__global__ void __launch_bounds__(kThreads) diagonal_kernel(const S4Call c, float* K) {
  extern __shared__ Complex powers[];  // (N, kTile), then (kTiles, N)
  Complex* const weights = powers + c.N * kTile;
  const int64_t h = blockIdx.x, l0 = blockIdx.y * kTiles * kTile;
  for (int64_t channel = 0; channel < c.channels; ++channel) {
    __syncthreads();
    for (int64_t n = threadIdx.x; n < c.N; n += kThreads) {
      const Discrete d = discretise(c, dt_of(c, h), A_of(c, h, n));
      Complex now = kOne;
      for (int64_t j = 0; j < kTile; ++j, now = now * d.decay) powers[n * kTile + j] = now;
      Complex w = 2.0 * (C_of(c, channel, h, n) * B_of(c, h, n) * d.q) * power(d.decay, l0);
      for (int64_t i = 0; i < kTiles; ++i, w = w * now) weights[i * c.N + n] = w;
    }
    __syncthreads();
    for (int64_t at = threadIdx.x; at < kTiles * kTile; at += kThreads) {
      const int64_t i = at / kTile, j = at % kTile;
      if (l0 + at >= c.L) continue;
      double sum = 0;
      for (int64_t n = 0; n < c.N; ++n) {
        const Complex w = weights[i * c.N + n], z = powers[n * kTile + j];
        sum = fma(w.re, z.re, sum);
        sum = fma(-w.im, z.im, sum);
      }
      K[(channel * c.H + h) * c.L + l0 + at] = static_cast<float>(sum);
    }
  }
}

// How the threads of a block share the states: some segments of the other axis each.
struct Shared {
  int64_t of_state, segment, n;  // segments; this thread's, this thread's state
  __device__ explicit Shared(int64_t N) {
    int64_t width = 32;
    while (width < N) width *= 2;
    of_state = kThreads / width;
    segment = threadIdx.x / width;
    n = threadIdx.x % width;
  }
};

__device__ void put(const S4Sum& to, int64_t i, double value) {
  if (to.to) to.to[i] = (to.add ? to.to[i] : 0.0f) + static_cast<float>(value);
}

__device__ void put_heads(const S4Backward& b, int64_t h, int64_t n, Complex A, Complex B,
                          Complex P) {
  const int64_t N = b.c.N;
  const Complex parts[] = {A, B, P};
  for (int64_t part = 0; part < 3; ++part) {
    double* const to = b.heads + ((h * 3 + part) * N + n) * 2;
    to[0] = parts[part].re;
    to[1] = parts[part].im;
  }
}

__global__ void __launch_bounds__(kThreads) diagonal_backward_kernel(const S4Backward b) {
  __shared__ Complex of_segment[2][kThreads];
  const S4Call& c = b.c;
  const int64_t h = blockIdx.x;
  const Shared share(c.N);
  const bool here = share.n < c.N, mine = here && share.segment == 0;
  const double dt = dt_of(c, h);
  const Complex A = here ? A_of(c, h, share.n) : kOne, B = here ? B_of(c, h, share.n) : kOne,
                a = dt * A;
  const Discrete d = discretise(c, dt, A);
  const int64_t length = (c.L + share.of_state - 1) / share.of_state,
                begin = min(c.L, share.segment * length), end = min(c.L, begin + length);
  Complex gA = {0, 0}, gB = {0, 0};
  double g_dt = 0;
  for (int64_t channel = 0; channel < c.channels; ++channel) {
    const float* const dK = b.dK + (channel * c.H + h) * c.L;
    // Σ dK[l] Ā^(l - begin) and its derivative, by Horner
    Complex value = {0, 0}, slope = {0, 0};
    for (int64_t l = end - 1; here && l >= begin; --l) {
      slope = slope * d.decay + value;
      value = value * d.decay + Complex{dK[l], 0};
    }
    const Complex first = power(d.decay, begin);
    __syncthreads();
    of_segment[0][threadIdx.x] = first * value;
    of_segment[1][threadIdx.x] = first * (static_cast<double>(begin) * value + d.decay * slope);
    __syncthreads();
    if (!mine) continue;
    Complex M = {0, 0}, M1 = {0, 0};  // Σ dK[l] Ā^l, Σ l dK[l] Ā^l
    for (int64_t i = 0; i < share.of_state; ++i) {
      M += of_segment[0][i * (kThreads / share.of_state) + share.n];
      M1 += of_segment[1][i * (kThreads / share.of_state) + share.n];
    }
    const Complex C = C_of(c, channel, h, share.n), q = d.q;
    const Complex g_c = 2.0 * conj(M);                 // of C' = C B q
    const Complex g_log = 2.0 * conj(C * B * q * M1);  // of log Ā
    const Complex gC = g_c * conj(B * q);
    put(b.C, ((channel * c.H + h) * c.N + share.n) * 2, gC.re);
    put(b.C, ((channel * c.H + h) * c.N + share.n) * 2 + 1, gC.im);
    gB += g_c * conj(C * q);
    const Complex g_q = g_c * conj(C * B);
    Complex q_dt, q_A, log_a;  // dq/dΔ, dq/dA, d(log Ā)/d(ΔA)
    if (c.bilinear) {
      const Complex m = kOne / (kOne - 0.5 * a);
      q_dt = m * m;
      q_A = (0.5 * dt * dt) * (m * m);
      log_a = 0.5 * (kOne / (kOne + 0.5 * a)) + 0.5 * m;
    } else {
      q_dt = d.decay;
      q_A = (dt * d.decay - q) / A;
      log_a = kOne;
    }
    const Complex g_a = g_log * conj(log_a);
    gA += dt * g_a + g_q * conj(q_A);
    g_dt += (g_a * conj(A) + g_q * conj(q_dt)).re;
  }
  if (mine) put_heads(b, h, share.n, gA, gB, {0, 0});
  g_dt = block_sum(g_dt);
  if (threadIdx.x == 0) put(b.inv_dt, h, g_dt * dt_slope_of(c, h));
}

// One head's sums over poles: p, q, and for each pair v, alpha and beta; see dplr.cpp. The pairs are PP̄, BP̄,
// then for each channel BC, PC.
struct Poles {
  double p[kStates], q[kStates], alpha[kMaxPairs][kStates], beta[kMaxPairs][kStates];
};

__device__ Complex v_of(const S4Call& c, int64_t h, int64_t n, int m) {
  const double dt = dt_of(c, h);
  const Complex B = B_of(c, h, n), P = P_of(c, h, n);
  if (m == 0) return {dt * norm(P), 0};
  if (m == 1) return dt * (B * conj(P));
  return dt * ((m % 2 == 0 ? B : P) * C_of(c, m / 2 - 1, h, n));
}

__device__ void fill_poles(const S4Call& c, int64_t h, int pairs, Poles& poles) {
  __syncthreads();
  for (int64_t n = threadIdx.x; n < c.N; n += kThreads) {
    const Complex a = dt_of(c, h) * A_of(c, h, n);
    poles.p[n] = norm(a);
    poles.q[n] = a.re;
    for (int m = 0; m < pairs; ++m) {
      const Complex v = v_of(c, h, n, m);
      poles.alpha[m][n] = -2 * (v * conj(a)).re;
      poles.beta[m][n] = 2 * v.re;
    }
  }
  __syncthreads();
}

// 1 / (p - y² - 2i q y)
__device__ Complex reciprocal(const Poles& poles, int64_t n, double y) {
  return kOne / Complex{poles.p[n] - y * y, -2 * poles.q[n] * y};
}

template <int kPairs>
__device__ void add_poles(const Poles& poles, int64_t N, double y, Complex (&r)[kMaxPairs]) {
#pragma unroll
  for (int m = 0; m < kPairs; ++m) r[m] = {0, 0};
  for (int64_t n = 0; n < N; ++n) {
    const Complex d = reciprocal(poles, n, y);
#pragma unroll
    for (int m = 0; m < kPairs; ++m) r[m] += Complex{poles.alpha[m][n], y * poles.beta[m][n]} * d;
  }
}

// Scratch of a block: roots of unity (T), two columns (T), then for backward the spectra of dK (channels,
// points) and the gradients of the sums (pairs, points).
struct Work {
  int64_t T, points;
  Complex *roots, *data, *other, *spectra, *g;

  __device__ Work(const S4Call& c, int64_t numbers) : T(c.T), points(c.T / 2 + 1) {
    roots = reinterpret_cast<Complex*>(c.scratch) + blockIdx.x * numbers;
    data = roots + T;
    other = data + T;
    spectra = other + T;
    g = spectra + c.channels * points;
  }
  __device__ void fill() const {
    for (int64_t m = threadIdx.x; m < T; m += kThreads) roots[m] = root_of_unity(m, T);
    __syncthreads();
  }
  __device__ bool is_power_of_two() const { return (T & (T - 1)) == 0; }
  __device__ bool is_finite(int64_t k) const { return 2 * k < T; }
  // 2 tan(π k / T)
  __device__ double y(int64_t k) const {
    double s, co;
    sincospi(static_cast<double>(k) / static_cast<double>(T), &s, &co);
    return 2 * s / co;
  }

  // out[l] = Σ_k data[k] exp(2πi k l / T) / T, l < L, from the half of the spectrum, whose other half is its
  // conjugate.
  __device__ void to_time(int64_t L, float* out) {
    __syncthreads();
    if (is_power_of_two()) {
      for (int64_t k = threadIdx.x + points; k < T; k += kThreads) data[k] = conj(data[T - k]);
      __syncthreads();
      fft(data, other, roots, T, true);
      for (int64_t l = threadIdx.x; l < L; l += kThreads)
        out[l] = static_cast<float>(data[l].re / static_cast<double>(T));
    } else {
      for (int64_t l = threadIdx.x; l < L; l += kThreads) {
        double sum = 0;
        for (int64_t k = 0, at = 0; k < points; ++k) {
          const double twice = k == 0 || 2 * k == T ? 1 : 2;
          sum += twice * (data[k] * conj(roots[at])).re;
          at += l;
          if (at >= T) at -= T;
        }
        out[l] = static_cast<float>(sum / static_cast<double>(T));
      }
    }
    __syncthreads();
  }

  // to[k] = Σ_l in[l] exp(-2πi k l / T), k < points
  __device__ void to_frequency(const float* in, int64_t L, Complex* to) {
    __syncthreads();
    if (is_power_of_two()) {
      for (int64_t l = threadIdx.x; l < T; l += kThreads)
        data[l] = {l < L ? static_cast<double>(in[l]) : 0.0, 0.0};
      __syncthreads();
      fft(data, other, roots, T, false);
      for (int64_t k = threadIdx.x; k < points; k += kThreads) to[k] = data[k];
    } else {
      for (int64_t k = threadIdx.x; k < points; k += kThreads) {
        Complex sum = {0, 0};
        for (int64_t l = 0, at = 0; l < L; ++l) {
          sum += static_cast<double>(in[l]) * roots[at];
          at += k;
          if (at >= T) at -= T;
        }
        to[k] = sum;
      }
    }
    __syncthreads();
  }
};

template <int kPairs>
__global__ void __launch_bounds__(kThreads) dplr_kernel(const S4Call c, float* K, int64_t numbers) {
  __shared__ Poles poles;
  Work work(c, numbers);
  work.fill();
  for (int64_t h = blockIdx.x; h < c.H; h += gridDim.x) {
    fill_poles(c, h, kPairs, poles);
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      const int BC = static_cast<int>(2 + 2 * channel);
      for (int64_t k = threadIdx.x; k < work.points; k += kThreads) {
        Complex value = {0, 0};
        if (work.is_finite(k)) {
          const double y = work.y(k);
          Complex r[kMaxPairs];
          add_poles<kPairs>(poles, c.N, y, r);
          const Complex of_B = channel == 0 ? r[2] : r[kPairs - 2],
                        of_P = channel == 0 ? r[3] : r[kPairs - 1];
          value = (of_B - r[1] * of_P / (kOne + r[0])) * Complex{1, 0.5 * y};
        } else {
          for (int64_t n = 0; n < c.N; ++n) value.re += v_of(c, h, n, BC).re;
        }
        if (k == 0) value.im = 0;
        work.data[k] = value;
      }
      work.to_time(c.L, K + (channel * c.H + h) * c.L);
    }
  }
}

template <int kPairs>
__global__ void __launch_bounds__(kThreads)
    dplr_backward_kernel(const S4Backward b, int64_t numbers) {
  extern __shared__ double of_thread[];  // (2 + 2 pairs, kThreads)
  __shared__ Poles poles;
  const S4Call& c = b.c;
  Work work(c, numbers);
  work.fill();
  for (int64_t h = blockIdx.x; h < c.H; h += gridDim.x) {
    fill_poles(c, h, kPairs, poles);
    for (int64_t channel = 0; channel < c.channels; ++channel)
      work.to_frequency(b.dK + (channel * c.H + h) * c.L, c.L,
                        work.spectra + channel * work.points);
    const auto spectrum = [&](int64_t channel, int64_t k) {
      const bool alone = k == 0 || 2 * k == work.T;
      return ((alone ? 1.0 : 2.0) / static_cast<double>(work.T)) *
             work.spectra[channel * work.points + k];
    };
    for (int64_t k = threadIdx.x; k < work.points; k += kThreads) {
      Complex g[kMaxPairs] = {};
      if (work.is_finite(k)) {
        const double y = work.y(k);
        Complex r[kMaxPairs];
        add_poles<kPairs>(poles, c.N, y, r);
        const Complex w = kOne / (kOne + r[0]), BP = r[1];
#pragma unroll
        for (int BC = 2; BC < kPairs; BC += 2) {
          const Complex u = spectrum(BC / 2 - 1, k) * Complex{1, -0.5 * y}, PC = r[BC + 1];
          g[BC] += u;
          g[1] += -u * conj(PC * w);
          g[BC + 1] += -u * conj(BP * w);
          g[0] += u * conj(BP * PC * w * w);
        }
      }
#pragma unroll
      for (int m = 0; m < kPairs; ++m) work.g[m * work.points + k] = g[m];
    }
    __syncthreads();
    // The gradients of p, q, alpha and beta: a state and a segment of the frequencies a thread.
    const Shared share(c.N);
    const int64_t n = share.n;
    double dp = 0, dq = 0, da[kPairs] = {}, db[kPairs] = {};
    const int64_t length = (work.points + share.of_state - 1) / share.of_state,
                  begin = share.segment * length, end = min(work.points, begin + length);
    for (int64_t k = begin; n < c.N && k < end; ++k) {
      if (!work.is_finite(k)) continue;
      const double y = work.y(k);
      const Complex w = reciprocal(poles, n, y);
      Complex s = {0, 0};
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
        const Complex e = work.g[m * work.points + k] * conj(w);
        da[m] += e.re;
        db[m] += y * e.im;
        s += e * Complex{poles.alpha[m][n], -y * poles.beta[m][n]};
      }
      const Complex d = -(s * conj(w));  // of the denominator
      dp += d.re;
      dq += -2 * y * d.im;
    }
    of_thread[threadIdx.x] = dp;
    of_thread[kThreads + threadIdx.x] = dq;
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      of_thread[(2 + m) * kThreads + threadIdx.x] = da[m];
      of_thread[(2 + kPairs + m) * kThreads + threadIdx.x] = db[m];
    }
    __syncthreads();
    double g_dt = 0;
    if (share.segment == 0 && n < c.N) {
      const auto total = [&](int row) {
        double sum = 0;
        for (int64_t i = 0; i < share.of_state; ++i)
          sum += of_thread[row * kThreads + i * (kThreads / share.of_state) + n];
        return sum;
      };
      const double dt = dt_of(c, h);
      const Complex A = A_of(c, h, n), a = dt * A, B = B_of(c, h, n), P = P_of(c, h, n);
      Complex g_a = (2 * total(0)) * a + Complex{total(1), 0};
      Complex g_v[kPairs];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
        const double of_alpha = total(2 + m), of_beta = total(2 + kPairs + m);
        g_v[m] = (-2 * of_alpha) * a + Complex{2 * of_beta, 0};
        g_a += (-2 * of_alpha) * v_of(c, h, n, m);
      }
      // v = Δ|P|², Δ B P̄, then Δ B C, Δ P C
      Complex gP = (2 * dt * g_v[0].re) * P + dt * (B * conj(g_v[1])), gB = dt * (g_v[1] * P);
      g_dt = g_v[0].re * norm(P) + (g_v[1] * conj(B) * P).re;
#pragma unroll
      for (int BC = 2; BC < kPairs; BC += 2) {
        const int64_t channel = BC / 2 - 1;
        const Complex C = C_of(c, channel, h, n), g_PC = g_v[BC + 1];
        const double at_infinity = work.T % 2 == 0 ? spectrum(channel, work.T / 2).re : 0.0;
        const Complex g_BC = g_v[BC] + Complex{at_infinity, 0};
        gB += dt * (g_BC * conj(C));
        gP += dt * (g_PC * conj(C));
        const Complex gC = dt * (g_BC * conj(B) + g_PC * conj(P));
        put(b.C, ((channel * c.H + h) * c.N + n) * 2, gC.re);
        put(b.C, ((channel * c.H + h) * c.N + n) * 2 + 1, gC.im);
        g_dt += (g_BC * conj(B * C) + g_PC * conj(P * C)).re;
      }
      put_heads(b, h, n, dt * g_a, gB, gP);
      g_dt += (g_a * conj(A)).re;
    }
    g_dt = block_sum(g_dt);
    if (threadIdx.x == 0) put(b.inv_dt, h, g_dt * dt_slope_of(c, h));
    __syncthreads();
  }
}

// Gradients (S, N, ...) from those of each head, in the order of the heads.
__global__ void sum_heads_kernel(const S4Backward b) {
  const S4Call& c = b.c;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= c.S * c.N) return;
  const int64_t s = i / c.N, n = i % c.N;
  Complex sums[3] = {};
  for (int64_t h = s; h < c.H; h += c.S)
    for (int64_t part = 0; part < 3; ++part) {
      const double* const from = b.heads + ((h * 3 + part) * c.N + n) * 2;
      sums[part] += Complex{from[0], from[1]};
    }
  const auto sum = [](const S4Sum& to, int64_t at, double value) {
    if (to.to) to.to[at] = static_cast<float>((to.add ? to.to[at] : 0.0) + value);
  };
  sum(b.A_real, i, sums[0].re * -exp(static_cast<double>(c.A_real[i])));
  sum(b.A_imag, i, (c.positive_imag ? 1.0 : -1.0) * sums[0].im);
  sum(b.B, 2 * i, sums[1].re);
  sum(b.B, 2 * i + 1, sums[1].im);
  sum(b.P, 2 * i, sums[2].re);
  sum(b.P, 2 * i + 1, sums[2].im);
}

int64_t pairs_of(const S4Call& c) { return 2 + 2 * c.channels; }

// Complex numbers of a block's Work.
int64_t numbers(const S4Call& c, bool backward) {
  return 3 * c.T + (backward ? (c.channels + pairs_of(c)) * (c.T / 2 + 1) : 0);
}

unsigned dplr_blocks(const S4Call& c) { return static_cast<unsigned>(std::min(c.H, kMostBlocks)); }

template <class Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
}

}  // namespace

int64_t s4_kernel_scratch(const S4Call& c, bool backward) {
  return c.dplr ? std::min(c.H, kMostBlocks) * 2 * numbers(c, backward) : 0;
}

void s4_kernel(const S4Call& c, float* K, void* stream) {
  if (c.H == 0 || c.L == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (c.dplr) {
    const auto launch = [&](auto kernel) {
      kernel<<<dplr_blocks(c), kThreads, 0, s>>>(c, K, numbers(c, false));
    };
    c.channels == 1 ? launch(dplr_kernel<4>) : launch(dplr_kernel<6>);
  } else {
    const size_t bytes = static_cast<size_t>(c.N * (kTile + kTiles)) * sizeof(Complex);
    const dim3 grid(static_cast<unsigned>(c.H),
                    static_cast<unsigned>(ceil_div(c.L, kTiles * kTile)));
    allow_shared(diagonal_kernel, bytes);
    diagonal_kernel<<<grid, kThreads, bytes, s>>>(c, K);
  }
  check_launch("s4_kernel");
}

void s4_kernel_backward(const S4Backward& b, void* stream) {
  const S4Call& c = b.c;
  if (c.H == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (c.dplr) {
    const auto launch = [&](auto kernel) {
      const size_t bytes = static_cast<size_t>((2 + 2 * pairs_of(c)) * kThreads) * sizeof(double);
      allow_shared(kernel, bytes);
      kernel<<<dplr_blocks(c), kThreads, bytes, s>>>(b, numbers(c, true));
    };
    c.channels == 1 ? launch(dplr_backward_kernel<4>) : launch(dplr_backward_kernel<6>);
  } else {
    diagonal_backward_kernel<<<static_cast<unsigned>(c.H), kThreads, 0, s>>>(b);
  }
  sum_heads_kernel<<<static_cast<unsigned>(ceil_div(c.S * c.N, 128)), 128, 0, s>>>(b);
  check_launch("s4_kernel backward");
}

}  // namespace krait::cuda
