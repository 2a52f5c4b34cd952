// A few numbers a call: one block does.
#include "krait/ops/squared_error/cuda.h"

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 512;

__global__ void kernel(const float* y, const float* targets, int64_t n,
                       const ops::LossScale loss_scale, float* each, float* loss, float* dy,
                       bool add) {
  const float scale = loss_scale.value();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float off = y[i] - targets[i];
    each[i] = off * off;
    sum += static_cast<double>(off) * static_cast<double>(off);
    if (dy) dy[i] = (add ? dy[i] : 0.0f) + 2 * scale * off;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(static_cast<double>(scale) * sum);
}

}  // namespace

void squared_error(const float* y, const float* targets, int64_t n, ops::LossScale scale,
                   float* each, float* loss, float* dy, bool add, void* stream) {
  kernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(y, targets, n, scale, each, loss,
                                                                dy, add);
  check_launch("squared_error");
}

}  // namespace krait::cuda
