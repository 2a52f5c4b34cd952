#include "krait/ops/class_token/cuda.h"

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void forward_kernel(const ClassToken s, const float* x, const float* cls,
                               const float* positions, float* y) {
  const int64_t row = blockIdx.x, b = row / (s.M + 1), t = row % (s.M + 1);
  const float* const from = t == s.at ? cls : x + (b * s.M + t - (t > s.at ? 1 : 0)) * s.D;
  for (int64_t i = threadIdx.x; i < s.D; i += blockDim.x)
    y[row * s.D + i] = from[i] + positions[t * s.D + i];
}

__device__ inline void put(const ClassTokenGradient& g, int64_t i, float value) {
  if (g.to) g.to[i] = g.add ? g.to[i] + value : value;
}

// A block a place, through the batch in its order.
__global__ void backward_kernel(const ClassToken s, const float* dy, ClassTokenGradient dx,
                                ClassTokenGradient dcls, ClassTokenGradient dpositions) {
  const int64_t t = blockIdx.x, i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= s.D) return;
  float sum = 0;
  for (int64_t b = 0; b < s.B; ++b) {
    const float g = dy[(b * (s.M + 1) + t) * s.D + i];
    sum += g;
    if (t != s.at) put(dx, (b * s.M + t - (t > s.at ? 1 : 0)) * s.D + i, g);
  }
  put(dpositions, t * s.D + i, sum);
  if (t == s.at) put(dcls, i, sum);
}

}  // namespace

void class_token_forward(const ClassToken& s, const float* x, const float* cls,
                         const float* positions, float* y, void* stream) {
  if (s.B * s.D == 0) return;
  forward_kernel<<<static_cast<unsigned>(s.B * (s.M + 1)), kThreads, 0,
                   static_cast<cudaStream_t>(stream)>>>(s, x, cls, positions, y);
  check_launch("class_token");
}

void class_token_backward(const ClassToken& s, const float* dy, ClassTokenGradient dx,
                          ClassTokenGradient dcls, ClassTokenGradient dpositions, void* stream) {
  if (s.D == 0) return;
  const dim3 grid(static_cast<unsigned>(s.M + 1), static_cast<unsigned>(ceil_div(s.D, kThreads)));
  backward_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s, dy, dx, dcls,
                                                                            dpositions);
  check_launch("class_token backward");
}

}  // namespace krait::cuda
