#include "krait/ops/ssd/cuda_matrix_parts.cuh"

#include "krait/ops/ssd/cuda_matrix.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kStepWarps = 8;  // of a block, a head each

// A lane has tokens 2 lane and the next.
__global__ void __launch_bounds__(32 * kStepWarps)
    steps_kernel(const CudaProblem p, const MatrixSteps to) {
  const Place chunk = place_of(p, blockIdx.x, kQ);
  const int64_t h = blockIdx.y * kStepWarps + threadIdx.x / 32;
  if (!chunk.there || h >= p.H) return;
  const int lane = lane_of();
  const float a = scaled_rate(p, h);
  float delta[2] = {}, slope[2] = {}, log2[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    if (t < chunk.tokens) delta[i] = step_size(p, h, get(p.dt, chunk.begin + t, h), slope[i]);
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
  const int64_t at = (int64_t{blockIdx.x} * p.H + h) * kQ + 2 * lane;
  *reinterpret_cast<float4*>(to.steps + at) = make_float4(delta[0], log2[0], delta[1], sum);
  if (to.slopes) *reinterpret_cast<float2*>(to.slopes + at) = make_float2(slope[0], slope[1]);
}

constexpr int kPairThreads = 128;

template <int NT>
__global__ void __launch_bounds__(kPairThreads) pairs_kernel(const CudaProblem p, float* pairs) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int NP = 64 * NT, ld = kLdN<NT>;
  const Place chunk = place_of(p, blockIdx.x, kQ);
  if (!chunk.there) return;
  bf16* const B = reinterpret_cast<bf16*>(memory);
  bf16* const C = B + kQ * ld;
  const int thread = static_cast<int>(threadIdx.x), strip = thread / 32, lane = lane_of();
  const int valid = static_cast<int>(chunk.tokens), states = static_cast<int>(p.N);
  const int column = static_cast<int>(blockIdx.y) * states;
  bring_async<kQ, NP, kPairThreads>(B, ld, p.B, chunk.begin, valid, column, states, thread);
  bring_async<kQ, NP, kPairThreads>(C, ld, p.C, chunk.begin, valid, column, states, thread);
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
      reinterpret_cast<float4*>(pairs + (int64_t{blockIdx.x} * p.G + blockIdx.y) * kPairsSize);
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

template <int NT>
void launch_pairs(const CudaProblem& p, float* to, cudaStream_t stream) {
  const auto kernel = pairs_kernel<NT>;
  constexpr size_t kBytes = 2 * kQ * kLdN<NT> * sizeof(bf16);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)), static_cast<unsigned>(p.G));
  kernel<<<grid, kPairThreads, kBytes, stream>>>(p, to);
  cuda::check_launch("ssd products of C and B");
}

}  // namespace

int64_t matrix_steps_size(const CudaProblem& p) { return slots(p, kQ) * p.H * kQ; }

void matrix_steps(const CudaProblem& p, const MatrixSteps& to, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)),
                  static_cast<unsigned>(ceil_div(p.H, kStepWarps)));
  steps_kernel<<<grid, 32 * kStepWarps, 0, stream>>>(p, to);
  cuda::check_launch("ssd steps");
}

void matrix_pairs(const CudaProblem& p, float* to, cudaStream_t stream) {
  if (p.N <= 64) {
    launch_pairs<1>(p, to, stream);
  } else if (p.N <= 128) {
    launch_pairs<2>(p, to, stream);
  } else {
    launch_pairs<4>(p, to, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
