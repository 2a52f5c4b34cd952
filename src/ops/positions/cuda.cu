#include "krait/ops/positions/cuda.h"

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 128;

__device__ inline int64_t begin_of(const Positions& p, int64_t s) {
  return p.begin ? p.begin[s] : s * p.L;
}

// A block a sequence.
__global__ void place_kernel(const Positions p) {
  const int64_t s = blockIdx.x, begin = begin_of(p, s), end = begin_of(p, s + 1);
  const int64_t in = p.in ? p.in[s] : s, out = p.out ? p.out[s] : s;
  const int64_t count = p.state_in && in >= 0 ? static_cast<int64_t>(p.state_in[in]) : 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
    p.position[i] = static_cast<int32_t>(count + i - begin);
  __syncthreads();  // state_out may be state_in's memory
  if (threadIdx.x == 0 && p.state_out && out >= 0)
    p.state_out[out] = static_cast<float>(count + end - begin);
}

template <class W>
__global__ void add_kernel(const Positions p, const float* x, const W* w, float* y) {
  const int64_t row = p.position[blockIdx.x];
  for (int64_t i = threadIdx.x; i < p.D; i += blockDim.x) {
    const float of_place =
        row < p.T ? static_cast<float>(w[row * p.D + i]) : __int_as_float(0x7fffffff);
    y[blockIdx.x * p.D + i] = x[blockIdx.x * p.D + i] + of_place;
  }
}

// A block a row of w: the tokens that stand there, at most one a sequence, in the sequences' order.
__global__ void gather_kernel(const Positions p, const float* dy, float* dw) {
  const int64_t row = blockIdx.x, i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= p.D) return;
  float sum = 0;
  for (int64_t s = 0; s < p.n; ++s) {
    const int64_t begin = begin_of(p, s), end = begin_of(p, s + 1);
    const int64_t t = begin < end ? begin + row - p.position[begin] : end;
    if (t >= begin && t < end) sum += dy[t * p.D + i];
  }
  dw[row * p.D + i] += sum;
}

}  // namespace

void positions_forward(const Positions& p, const float* x, const void* w, bool bf16, float* y,
                       void* stream) {
  const auto stream_of = static_cast<cudaStream_t>(stream);
  if (p.n > 0) {
    place_kernel<<<static_cast<unsigned>(p.n), kThreads, 0, stream_of>>>(p);
    check_launch("positions");
  }
  if (p.tokens * p.D == 0) return;
  const auto blocks = static_cast<unsigned>(p.tokens);
  if (bf16) {
    add_kernel<<<blocks, kThreads, 0, stream_of>>>(p, x, static_cast<const __nv_bfloat16*>(w), y);
  } else {
    add_kernel<<<blocks, kThreads, 0, stream_of>>>(p, x, static_cast<const float*>(w), y);
  }
  check_launch("positions");
}

void positions_backward(const Positions& p, const float* dy, float* dw, void* stream) {
  if (p.tokens * p.D * p.T == 0) return;
  const dim3 grid(static_cast<unsigned>(p.T), static_cast<unsigned>(ceil_div(p.D, kThreads)));
  gather_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, dy, dw);
  check_launch("positions backward");
}

}  // namespace krait::cuda
