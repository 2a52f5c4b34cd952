#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/class_token/class_token.h"
#include "krait/ops/class_token/cuda.h"
#include "krait/tensor/device.h"

namespace krait::ops {
namespace {

// Token t > at of the result is token t - 1 of x.
void run_forward(const cuda::ClassToken& s, const float* x, const float* cls,
                 const float* positions, float* y) {
  parallel_for(s.B * (s.M + 1), [&](int64_t row) {
    const int64_t b = row / (s.M + 1), t = row % (s.M + 1);
    const float* from = t == s.at ? cls : x + (b * s.M + t - (t > s.at ? 1 : 0)) * s.D;
    for (int64_t i = 0; i < s.D; ++i) y[row * s.D + i] = from[i] + positions[t * s.D + i];
  });
}

void run_backward(const cuda::ClassToken& s, const float* dy, const GradTarget& dx,
                  const GradTarget& dcls, const GradTarget& dpositions) {
  const auto put = [](const GradTarget& to, int64_t i, float g) {
    float& v = to.grad.as<float>()[i];
    v = to.add ? v + g : g;
  };
  parallel_for(s.M + 1, [&](int64_t t) {
    for (int64_t i = 0; i < s.D; ++i) {
      float sum = 0;
      for (int64_t b = 0; b < s.B; ++b) {
        const float g = dy[(b * (s.M + 1) + t) * s.D + i];
        sum += g;
        if (dx.grad && t != s.at) put(dx, (b * s.M + t - (t > s.at ? 1 : 0)) * s.D + i, g);
      }
      if (dpositions.grad) put(dpositions, t * s.D + i, sum);
      if (dcls.grad && t == s.at) put(dcls, i, sum);
    }
  });
}

}  // namespace

Tensor class_token(Context& c, const Tensor& x, const Tensor& cls, const Tensor& positions,
                   int64_t at) {
  require(x.dtype == DType::f32 && x.contiguous() && x.rank() == 3,
          "[class_token] x: expected contiguous float32 (B, M, D), got {} {}", name_of(x.dtype),
          x.shape);
  const int64_t B = x.size(0), M = x.size(1), D = x.size(2);
  require(cls.dtype == DType::f32 && cls.contiguous() && cls.numel() == D,
          "[class_token] cls: expected contiguous float32 ({},), got {} {}", D, name_of(cls.dtype),
          cls.shape);
  require(positions.dtype == DType::f32 && positions.contiguous() &&
              positions.numel() == (M + 1) * D && positions.size(-1) == D,
          "[class_token] positions: expected contiguous float32 ({}, {}), got {} {}", M + 1, D,
          name_of(positions.dtype), positions.shape);
  require(at >= 0 && at <= M, "[class_token] at: expected a place from 0 to {}, got {}", M, at);
  Tensor y = c.alloc({B, M + 1, D}, DType::f32);
  c.cost("class_token", 2.0 * static_cast<double>(y.bytes()), static_cast<double>(y.numel()));
  const cuda::ClassToken sizes = {B, M, D, at};
  const bool gpu = c.device.type == Device::cuda;
  if (!c.planning() && gpu) {
    KRAIT_WITH_CUDA(cuda::class_token_forward(sizes, x.as<float>(), cls.as<float>(),
                                              positions.as<float>(), y.as<float>(), c.stream));
  } else if (!c.planning()) {
    run_forward(sizes, x.as<float>(), cls.as<float>(), positions.as<float>(), y.as<float>());
  }
  if (c.tape && needs_grad({x, cls, positions})) {
    c.tape->watch(y);
    c.tape->record([=](Context& back) {
      const Tensor dy = back.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = back.tape->grad_into(back, x), dcls = back.tape->grad_into(back, cls),
                       dpos = back.tape->grad_into(back, positions);
      back.cost("class_token.backward", 3.0 * static_cast<double>(y.bytes()),
                2.0 * static_cast<double>(y.numel()));
      if (back.planning()) return;
      if (!gpu) return run_backward(sizes, dy.as<float>(), dx, dcls, dpos);
      const auto sum = [](const GradTarget& g) {
        return cuda::ClassTokenGradient{g.grad ? g.grad.as<float>() : nullptr, g.add};
      };
      KRAIT_WITH_CUDA(cuda::class_token_backward(sizes, dy.as<float>(), sum(dx), sum(dcls),
                                                 sum(dpos), back.stream));
    });
  }
  return y;
}

}  // namespace krait::ops
