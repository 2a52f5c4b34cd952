#include "krait/ops/ssd/cuda_matrix_parts.cuh"

#include "krait/ops/ssd/cuda_matrix.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kPartThreads = 128;  // of a block
constexpr int kHeads = 4;          // of a warp, where it makes steps: as much is on its way at once

// Heads from h on; a lane has tokens 2 lane and the next.
__device__ inline void steps_of(const CudaProblem& p, const MatrixSteps& to, const Place& chunk,
                                int h) {
  const int lane = lane_of(), heads = min(kHeads, static_cast<int>(p.H) - h);
  float dt[kHeads][2] = {}, rates[kHeads] = {};
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    if (j >= heads) break;
    rates[j] = p.A[h + j];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (2 * lane + i < chunk.tokens) dt[j][i] = get(p.dt, chunk.begin + 2 * lane + i, h + j);
  }
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    if (j >= heads) break;
    const float a = cuda::scaled_A(rates[j], p.a_is_log);
    float delta[2] = {}, slope[2] = {}, log2[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (2 * lane + i < chunk.tokens) delta[i] = step_size(p, h + j, dt[j][i], slope[i]);
      log2[i] = delta[i] * a;
      if (log2[i] < -150.0f) log2[i] = -150.0f;
    }
    float sum = log2[0] + log2[1];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const float other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    const float before = __shfl_up_sync(~0u, sum, 1);
    log2[0] += lane > 0 ? before : 0.0f;
    const int64_t at = (int64_t{blockIdx.x} * p.H + h + j) * kQ + 2 * lane;
    *reinterpret_cast<float4*>(to.steps + at) = make_float4(delta[0], log2[0], delta[1], sum);
    if (to.slopes) *reinterpret_cast<float2*>(to.slopes + at) = make_float2(slope[0], slope[1]);
  }
}

template <int NT>
__device__ inline void pairs_of(const CudaProblem& p, float* pairs, const Place& chunk, int group,
                                unsigned char* memory) {
  constexpr int NP = 64 * NT, ld = kLdN<NT>;
  bf16* const B = reinterpret_cast<bf16*>(memory);
  bf16* const C = B + kQ * ld;
  const int thread = static_cast<int>(threadIdx.x), strip = thread / 32, lane = lane_of();
  const int valid = static_cast<int>(chunk.tokens), states = static_cast<int>(p.N);
  const int column = group * states;
  bring_async<kQ, NP, kPartThreads>(B, ld, p.B, chunk.begin, valid, column, states, thread);
  bring_async<kQ, NP, kPartThreads>(C, ld, p.C, chunk.begin, valid, column, states, thread);
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
  __syncthreads();

  float c[8][4] = {};
  for (int n = 0; n < NP; n += 16) {
    uint32_t a[4];
    cuda::load_a(a, C + 16 * strip * ld + n, ld);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s > strip) break;
      uint32_t b[4];
      cuda::load_b(b, B + 16 * s * ld + n, ld);
      cuda::mma_bf16(c[2 * s], a, b[0], b[1]);
      cuda::mma_bf16(c[2 * s + 1], a, b[2], b[3]);
    }
  }
  auto* const to =
      reinterpret_cast<float4*>(pairs + (int64_t{blockIdx.x} * p.G + group) * kPairsSize);
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    if (s > strip) break;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[pair_tile(s, 2 * strip + half) * 32 + lane] =
          make_float4(c[2 * s][2 * half], c[2 * s][2 * half + 1], c[2 * s + 1][2 * half],
                      c[2 * s + 1][2 * half + 1]);
  }
}

// Of a chunk the pairs of a group, where wanted, or the steps of some heads.
template <int NT>
__global__ void __launch_bounds__(kPartThreads)
    parts_kernel(const CudaProblem p, const MatrixSteps steps, float* const pairs,
                 const Decays decays) {
  extern __shared__ __align__(16) unsigned char memory[];
  cuda::let_next_start();
  if (blockIdx.y == 0)
    for (int64_t i = int64_t{blockIdx.x} * kPartThreads + threadIdx.x; i < decays.count;
         i += int64_t{gridDim.x} * kPartThreads)
      decays.data[i] = kNoDecay;
  const Place chunk = place_of(p, blockIdx.x, kQ);
  if (!chunk.there) return;
  const int of_pairs = pairs ? static_cast<int>(p.G) : 0, i = static_cast<int>(blockIdx.y);
  if (i < of_pairs) return pairs_of<NT>(p, pairs, chunk, i, memory);
  const int h =
      ((i - of_pairs) * (kPartThreads / 32) + static_cast<int>(threadIdx.x) / 32) * kHeads;
  if (h < p.H) steps_of(p, steps, chunk, h);
}

template <int NT>
void launch(const CudaProblem& p, const MatrixSteps& steps, float* pairs, const Decays& decays,
            cudaStream_t stream) {
  const auto kernel = parts_kernel<NT>;
  constexpr size_t kBytes = 2 * kQ * kLdN<NT> * sizeof(bf16);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)),
                  static_cast<unsigned>((pairs ? p.G : 0) +
                                        ceil_div(p.H, int64_t{kPartThreads / 32 * kHeads})));
  kernel<<<grid, kPartThreads, pairs ? kBytes : 0, stream>>>(p, steps, pairs, decays);
  cuda::check_launch("ssd steps");
}

}  // namespace

int64_t matrix_steps_size(const CudaProblem& p) { return slots(p, kQ) * p.H * kQ; }

void matrix_parts(const CudaProblem& p, const MatrixSteps& steps, float* pairs,
                  const Decays& decays, cudaStream_t stream) {
  if (p.N <= 64) {
    launch<1>(p, steps, pairs, decays, stream);
  } else if (p.N <= 128) {
    launch<2>(p, steps, pairs, decays, stream);
  } else {
    launch<4>(p, steps, pairs, decays, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
