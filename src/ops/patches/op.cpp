#include <algorithm>

#include "krait/base/threads.h"
#include "krait/ops/patches/cuda.h"
#include "krait/ops/patches/patches.h"
#include "krait/tensor/device.h"

namespace krait::ops {

Tensor patches(Context& c, const Tensor& images, int64_t size, int64_t stride) {
  require(size >= 1 && stride >= 1,
          "[patches] expected a size and a stride of at least 1, got {}, {}", size, stride);
  require(
      images.dtype == DType::f32 && images.contiguous() && images.rank() == 4 &&
          images.size(2) >= size && images.size(3) >= size && !images.var,
      "[patches] images: expected contiguous float32 (B, channels, H >= {}, W >= {}), got {} {}",
      size, size, name_of(images.dtype), images.shape);
  const int64_t B = images.size(0), channels = images.size(1), H = images.size(2),
                W = images.size(3);
  const int64_t rows = (H - size) / stride + 1, columns = (W - size) / stride + 1;
  const Tensor y = c.alloc({B, rows * columns, channels * size * size}, DType::f32);
  c.cost("patches", static_cast<double>(images.bytes() + y.bytes()), 0);
  if (c.planning()) return y;
  if (c.device.type == Device::cuda) {
    const cuda::Patches p = {B, channels, H, W, rows, columns, size, stride};
    KRAIT_WITH_CUDA(cuda::patches(p, images.as<float>(), y.as<float>(), c.stream));
    return y;
  }
  const float* from = images.as<float>();
  parallel_for(B * rows, [&](int64_t job) {
    const int64_t b = job / rows, row = job % rows;
    float* to = y.as<float>() + job * columns * y.size(2);
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t i = 0; i < size; ++i, to += size)
          std::copy_n(
              from + ((b * channels + channel) * H + row * stride + i) * W + column * stride, size,
              to);
  });
  return y;
}

}  // namespace krait::ops
