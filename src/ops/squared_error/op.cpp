// A few numbers a call, so plain loops do.
#include "krait/autograd/tape.h"
#include "krait/ops/squared_error/cuda.h"
#include "krait/ops/squared_error/squared_error.h"
#include "krait/tensor/device.h"

namespace krait::ops {

CrossEntropyResult squared_error(Context& c, const Tensor& y, const Tensor& targets,
                                 LossScale loss_scale) {
  require(y.dtype == DType::f32 && y.contiguous(),
          "[squared_error] y: expected contiguous float32, got {} {}", name_of(y.dtype), y.shape);
  require(targets.dtype == DType::f32 && targets.contiguous() && targets.shape == y.shape,
          "[squared_error] targets: expected contiguous float32 {}, got {} {}", y.shape,
          name_of(targets.dtype), targets.shape);
  const CrossEntropyResult result{c.alloc({1}, DType::f32), c.alloc(y.shape, DType::f32)};
  const GradTarget d = c.tape && needs_grad({y}) ? c.tape->grad_into(c, y) : GradTarget();
  const int64_t n = y.numel();
  c.cost("squared_error", 4.0 * static_cast<double>(y.bytes()), 3.0 * static_cast<double>(n));
  if (c.planning()) return result;
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::squared_error(y.as<float>(), targets.as<float>(), n, loss_scale,
                                        result.nll.as<float>(), result.loss.as<float>(),
                                        d.grad ? d.grad.as<float>() : nullptr, d.add, c.stream));
    return result;
  }
  const float scale = loss_scale.value();
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float off = y.as<float>()[i] - targets.as<float>()[i];
    result.nll.as<float>()[i] = off * off;
    sum += static_cast<double>(off) * static_cast<double>(off);
    if (!d.grad) continue;
    float& dy = d.grad.as<float>()[i];
    dy = (d.add ? dy : 0.0f) + 2 * scale * off;
  }
  *result.loss.as<float>() = static_cast<float>(static_cast<double>(scale) * sum);
  return result;
}

}  // namespace krait::ops
