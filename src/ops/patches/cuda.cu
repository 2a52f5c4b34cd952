#include "krait/ops/patches/cuda.h"

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

// A block a patch.
__global__ void kernel(const Patches p, const float* images, float* y) {
  const int64_t patch = blockIdx.x, column = patch % p.columns, row = patch / p.columns % p.rows,
                b = patch / (p.columns * p.rows), n = p.channels * p.size * p.size;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const int64_t dx = i % p.size, dy = i / p.size % p.size, channel = i / (p.size * p.size);
    y[patch * n + i] = images[((b * p.channels + channel) * p.H + row * p.stride + dy) * p.W +
                              column * p.stride + dx];
  }
}

}  // namespace

void patches(const Patches& p, const float* images, float* y, void* stream) {
  if (p.B * p.channels == 0) return;
  kernel<<<static_cast<unsigned>(p.B * p.rows * p.columns), 256, 0,
           static_cast<cudaStream_t>(stream)>>>(p, images, y);
  check_launch("patches");
}

}  // namespace krait::cuda
