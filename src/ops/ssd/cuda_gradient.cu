// With D[t,s] the decay from behind token s through token t, e[t] that from the state S before the chunk, f[s]
// that to the chunk's end, where dS is the state's gradient, and all sums within the chunk:
//
//   G[t,s] = C[t]·B[s]    K[t,s] = dy[t]·x[s]    W[t,s] = D G K Δ[s], t >= s
//   u[s]  = f[s] dS B[s] + Σ_t D G dy[t]            dx[s] = Δ[s] u[s] + D_skip dy[s]
//   dB[s] = Σ_t D K Δ[s] C[t] + f[s] Δ[s] dSᵀ x[s]
//   dC[t] = Σ_s D K Δ[s] B[s] + e[t] Sᵀ dy[t]
//   d(log decay of k) = Σ_{s<k<=t} W[t,s] + Σ_{t>=k} e[t] dy[t]·S C[t] + Σ_{s<k} f[s] Δ[s] x[s]·dS B[s]
//                       + e[last] Σ dS S                 (every pair that step k lies between; no differences)
//   dΔ[k] = x[k]·u[k] + A d(log decay of k)
#include "krait/ops/ssd/cuda_gradient.cuh"

#include "krait/ops/ssd/cuda_exact.cuh"

namespace krait::ops::ssd_gpu {

namespace {

template <int NT>
struct Room {
  static constexpr int Q = kQ, ldP = kP + kPad, ldN = 64 * NT + kPad, ldQ = Q + kPad;
  float *x, *dy, *B, *C, *state;  // state: S, then dS
  float *for_x, *for_BC;          // (Q, Q): D G; D K Δ
  float *W, *decays;              // (Q, Q + 1); (Q, Q + kPad)
  Steps* steps;
  float *start, *end, *u;  // of each token, the dot products above of S, of dS, and x·u
  float* loose;            // (32)

  static constexpr int ldW = Q + 1;
  static constexpr size_t size() {
    return (2 * Q * ldP + 2 * Q * ldN + kP * ldN + 3 * Q * ldQ + Q * ldW + 3 * Q + 32) *
               sizeof(float) +
           sizeof(Steps);
  }
  __device__ explicit Room(unsigned char* memory) {
    float* at = reinterpret_cast<float*>(memory);
    const auto take = [&](int n) {
      float* const taken = at;
      at += n;
      return taken;
    };
    x = take(Q * ldP), dy = take(Q * ldP), B = take(Q * ldN), C = take(Q * ldN);
    state = take(kP * ldN), for_x = take(Q * ldQ), for_BC = take(Q * ldQ);
    W = take(Q * ldW), start = take(Q), end = take(Q), u = take(Q), loose = take(32);
    steps = reinterpret_cast<Steps*>(at);
    decays = reinterpret_cast<float*>(steps + 1);
  }
};

using Scores = Tile<kQ, kQ>;
using Columns = Tile<kQ, 64>;

// Brings a head's states (channels, N) at `from` to `to`, zeros beyond. Returns this thread's part of their
// product with what stood there, where `with_product`.
template <int NT>
__device__ float bring_states(float* to, const float* from, int channels, int N,
                              bool with_product) {
  constexpr int NP = 64 * NT, ld = Room<NT>::ldN;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kP * NP; i += kThreads) {
    const int row = i / NP, n = i % NP;
    const float value = row < channels && n < N ? from[row * N + n] : 0.0f;
    float& at = to[row * ld + n];
    if (with_product) sum = fmaf(value, at, sum);
    at = value;
  }
  return sum;
}

// dΔ and what follows from it, once all channels of a head have been added up. One warp.
template <int NT>
__device__ void finish_head(const Gradient& w, const Room<NT>& room, const Steps& steps, int64_t h,
                            int64_t row, int valid, float across, float* sums) {
  constexpr int Q = kQ, ldW = Room<NT>::ldW;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float A = rate(w.p, h);
#pragma unroll
  for (int s = lane; s < Q; s += 32) {  // W[t, s] becomes the sum over the tokens from t on
    float below = 0;
    for (int t = Q - 1; t > s; --t) room.W[t * ldW + s] = below += room.W[t * ldW + s];
  }
  __syncwarp();
  float dA = 0, dbias = 0;
#pragma unroll
  for (int k = lane; k < Q; k += 32) {
    float sum = across * steps.before[Q - 1];
    for (int t = Q - 1; t >= k; --t) sum += room.start[t];
    for (int s = 0; s < k; ++s) sum += steps.delta[s] * room.end[s] + room.W[k * ldW + s];
    const float ddelta = fmaf(A, sum, room.u[k]);
    const float ddt = ddelta * steps.slope[k];
    if (k >= valid) continue;
    dA = fmaf(steps.delta[k], sum, dA);
    dbias += ddt;
    if (w.ddt.data) put(w.ddt, row + k, h, ddt);
  }
  for (int step = 16; step > 0; step /= 2) {
    dA += __shfl_xor_sync(~0u, dA, step);
    dbias += __shfl_xor_sync(~0u, dbias, step);
  }
  if (lane == 0 && sums) sums[0] = dA, sums[1] = dbias;
}

// From the state before the chunk: dC, and of each token dy·S C.
template <int NT>
__device__ void add_dC(Columns (&dC)[NT], const Room<NT>& room, const Steps& steps, bool again) {
  using R = Room<NT>;
  constexpr int Q = kQ;
  float start[Q / 16] = {};
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    Columns d;
    clear(d);
    product<false, true>(d, room.dy, R::ldP, room.state + 64 * j, R::ldN, kP);
    for_both(d, dC[j], [&](int t, int n, const float* from_start, float* sum, int i) {
      const float* const C = room.C + t * R::ldN + 64 * j + n;
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const float value = steps.before[t] * from_start[v];
        start[i] = fmaf(value, C[v], start[i]);
        sum[v] += value;
      }
    });
  }
  sum_rows<Q>(start, room.start, again);
}

// u, its dot products with x, and dx, of channels of head h from p0 on.
template <int NT>
__device__ void put_dx(const Gradient& w, const Room<NT>& room, const Steps& steps, int64_t h,
                       int64_t p0, int64_t row, int valid, int channels) {
  using R = Room<NT>;
  constexpr int Q = kQ, NP = 64 * NT;
  const CudaProblem& p = w.p;
  const bool again = p0 > 0;
  Columns u;
  float part[Q / 16] = {};
  const auto times_x = [&](int s, int i, float& a, float& b, int r) {
    const float* const x = room.x + s * R::ldP + i;
    part[r] = fmaf(a, x[0], part[r]);
    part[r] = fmaf(b, x[1], part[r]);
  };
  clear(u);
  product<false, false>(u, room.B, R::ldN, room.state, R::ldN, NP);
  for_pairs(u, [&](int s, int i, float& a, float& b, int r) {
    a *= steps.after[s], b *= steps.after[s];
    times_x(s, i, a, b, r);
  });
  sum_rows<Q>(part, room.end, again);
  product<true, true>(u, room.for_x, R::ldQ, room.dy, R::ldP, Q);
#pragma unroll
  for (float& sum : part) sum = 0;
  for_pairs(u, [&](int s, int i, float& a, float& b, int r) {
    times_x(s, i, a, b, r);
    if (!w.dx.data || s >= valid || i >= channels) return;
    const bool two = i + 1 < channels;
    const float* const dy = room.dy + s * R::ldP + i;
    const float* const D = p.D ? p.D + (p.D_per_channel ? h * p.P + p0 + i : h) : nullptr;
    const float D0 = D ? D[0] : 0.0f, D1 = D && two ? D[p.D_per_channel ? 1 : 0] : 0.0f;
    put_pair(w.dx, row + s, h * p.P + p0 + i, two ? 2 : 1, fmaf(steps.delta[s], a, D0 * dy[0]),
             fmaf(steps.delta[s], b, D1 * dy[1]));
  });
  sum_rows<Q>(part, room.u, again);
}

// To the state behind the chunk: dB. By pairs within it: dB and dC.
template <int NT>
__device__ void add_dB_dC(Columns (&dB)[NT], Columns (&dC)[NT], const Room<NT>& room,
                          const Steps& steps) {
  using R = Room<NT>;
  constexpr int Q = kQ;
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    Columns d;
    clear(d);
    product<false, true>(d, room.x, R::ldP, room.state + 64 * j, R::ldN, kP);
    for_both(d, dB[j], [&](int s, int, const float* to_end, float* sum, int) {
      const float weight = steps.delta[s] * steps.after[s];
#pragma unroll
      for (int v = 0; v < 2; ++v) sum[v] = fmaf(weight, to_end[v], sum[v]);
    });
    product<true, true>(dB[j], room.for_BC, R::ldQ, room.C + 64 * j, R::ldN, Q);
    product<false, true>(dC[j], room.for_BC, R::ldQ, room.B + 64 * j, R::ldN, Q);
  }
}

template <int NT>
__global__ void __launch_bounds__(kThreads, NT <= 2 ? 2 : 1) gradient_kernel(const Gradient w) {
  extern __shared__ __align__(16) unsigned char memory[];
  using R = Room<NT>;
  constexpr int Q = kQ, NP = 64 * NT;
  const CudaProblem& p = w.p;
  const R room(memory);
  Steps& steps = *room.steps;
  const int N = static_cast<int>(p.N), thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int64_t of_group = w.sets, set = blockIdx.y, g = set / of_group;
  const int64_t first_head = g * (p.H / p.G) + set % of_group * w.heads;
  const int64_t heads = min(w.heads, (g + 1) * (p.H / p.G) - first_head);
  const Place chunk = place_of(p, blockIdx.x, Q);
  float* const block_sums =
      w.sums ? w.sums + (blockIdx.x * p.H + first_head) * sums_size(p) : nullptr;
  if (!chunk.there) {
    for (int64_t i = thread; block_sums && i < heads * sums_size(p); i += kThreads)
      block_sums[i] = 0;
    return;
  }
  const int64_t row = chunk.begin;
  const int valid = static_cast<int>(chunk.tokens);

  bring<Q, NP>(room.B, R::ldN, p.B, row, valid, g * N, N);
  bring<Q, NP>(room.C, R::ldN, p.C, row, valid, g * N, N);
  __syncthreads();
  Scores G;
  dot_products(G, room.C, R::ldN, room.B, R::ldN, NP);
  Columns dB[NT], dC[NT];
#pragma unroll
  for (int j = 0; j < NT; ++j) clear(dB[j]), clear(dC[j]);

  for (int64_t head = 0; head < heads; ++head) {
    const int64_t h = first_head + head;
    float* const sums = block_sums ? block_sums + head * sums_size(p) : nullptr;
    float across = 0;  // this thread's part of Σ dS S
    for (int64_t p0 = 0; p0 < p.P; p0 += kP) {
      const bool again = p0 > 0;  // a head's further channels
      const int channels = static_cast<int>(min(int64_t{kP}, p.P - p0));
      const int64_t at_state = ((blockIdx.x * p.H + h) * p.P + p0) * p.N;
      if (warp == 0 && !again) take_steps(p, h, row, valid, steps, room.decays);
      bring<Q, kP>(room.x, R::ldP, p.x, row, valid, h * p.P + p0, channels);
      bring<Q, kP>(room.dy, R::ldP, w.dy, row, valid, h * p.P + p0, channels);
      bring_states<NT>(room.state, static_cast<const float*>(w.states) + at_state, channels, N,
                       false);
      __syncthreads();

      Scores K;
      dot_products(K, room.dy, R::ldP, room.x, R::ldP, kP);
      for_both(G, K, [&](int t, int s, const float* c, const float* k, int) {
        float DG[2], DK[2];
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const float decay = s + v <= t ? decay_of(room.decays, t, s + v) : 0.0f;
          DG[v] = decay * c[v];
          DK[v] = decay * k[v] * steps.delta[s + v];
          float& W = room.W[t * R::ldW + s + v];
          W = fmaf(c[v], DK[v], again ? W : 0.0f);
        }
        store_pair(room.for_x + t * R::ldQ + s, DG[0], DG[1], 2);
        store_pair(room.for_BC + t * R::ldQ + s, DK[0], DK[1], 2);
      });
      add_dC<NT>(dC, room, steps, again);
      __syncthreads();
      across += bring_states<NT>(room.state, static_cast<const float*>(w.dstates) + at_state,
                                 channels, N, true);
      __syncthreads();

      put_dx<NT>(w, room, steps, h, p0, row, valid, channels);
      add_dB_dC<NT>(dB, dC, room, steps);
      if (sums && thread >= kThreads - kP && thread - (kThreads - kP) < channels) {  // dD
        const int i = thread - (kThreads - kP);
        float sum = 0;
        for (int t = 0; t < Q; ++t)
          sum = fmaf(room.dy[t * R::ldP + i], room.x[t * R::ldP + i], sum);
        sums[2 + p0 + i] = sum;
      }
      if (p0 + kP >= p.P) {
#pragma unroll
        for (int lane = 16; lane > 0; lane /= 2) across += __shfl_xor_sync(~0u, across, lane);
        if (thread % 32 == 0) room.loose[warp] = across;
      }
      __syncthreads();
    }
    if (warp > 0) continue;  // on to what the next head begins with, which this does not touch
    float all = 0;
    for (int i = 0; i < kThreads / 32; ++i) all += room.loose[i];
    finish_head<NT>(w, room, steps, h, row, valid, all, sums);
    __syncwarp();
  }

  const int64_t first_row = row_of_set(w, set, row), first_column = column_of_set(w, set);
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    const auto write = [&](const CudaRows& to, Columns& tile) {
      if (!to.data) return;
      for_pairs(tile, [&](int t, int n, float& a, float& b, int) {
        n += 64 * j;
        if (t < valid) put_pair(to, first_row + t, first_column + n, N - n, a, b);
      });
    };
    write(w.dB, dB[j]);
    write(w.dC, dC[j]);
  }
}

}  // namespace

void gradient(const Gradient& w, void* stream) {
  const CudaProblem& p = w.p;
  const auto s = static_cast<cudaStream_t>(stream);
  if (p.matrix_units) return matrix_gradient(w, s);
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)), static_cast<unsigned>(p.G * w.sets));
  const auto run = [&](auto kernel, size_t bytes) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
    kernel<<<grid, kThreads, bytes, s>>>(w);
  };
  if (p.N <= 64) {
    run(gradient_kernel<1>, Room<1>::size());
  } else if (p.N <= 128) {
    run(gradient_kernel<2>, Room<2>::size());
  } else {
    run(gradient_kernel<4>, Room<4>::size());
  }
  cuda::check_launch("ssd gradients");
}

}  // namespace krait::ops::ssd_gpu
