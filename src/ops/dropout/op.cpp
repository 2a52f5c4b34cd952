#include <cmath>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/dropout/cuda.h"
#include "krait/ops/dropout/dropout.h"
#include "krait/ops/dropout/kernels.h"

namespace krait::ops {

static constexpr int64_t kGrain = 1
                                  << 14;  // elements of one piece, a multiple of the kernels' block

static void run_forward(Context& c, const DropoutProblem& p, const Tensor& stream,
                        const Tensor& y) {
  const int64_t n = y.numel();
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::dropout_forward(p, stream.as<float>(), y.as<float>(), n, c.stream));
    return;
  }
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    KRAIT_PICK_ISA(dropout_kernels).forward(p, stream.as<float>(), y.as<float>(), begin, end);
  });
}

static void run_backward(Context& c, const DropoutProblem& p, const Tensor& dy,
                         const GradTarget& dx) {
  const int64_t n = dy.numel();
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::dropout_backward(p, dy.as<float>(), dx.grad.data, dx.add, n, c.stream));
    return;
  }
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    KRAIT_PICK_ISA(dropout_kernels).backward(p, dy.as<float>(), dx.grad.data, dx.add, begin, end);
  });
}

Tensor dropout_add(Context& c, const Tensor& x, const Tensor& stream, float p) {
  require((x.dtype == DType::f32 || x.dtype == DType::bf16) && x.contiguous() && x.rank() >= 1,
          "[dropout_add] x: expected contiguous float32 or bfloat16 (..., D), got {} {}",
          name_of(x.dtype), x.shape);
  require(stream.dtype == DType::f32 && stream.contiguous() && stream.shape == x.shape,
          "[dropout_add] stream: expected contiguous float32 {}, got {} {}", x.shape,
          name_of(stream.dtype), stream.shape);
  require(p >= 0.0f && p < 1.0f, "[dropout_add] p: expected at least 0 and below 1, got {}", p);

  DropoutProblem problem;
  problem.x = x.data;
  problem.bf16 = x.dtype == DType::bf16;
  if (c.training && p > 0.0f) {
    const Philox rng = c.draw();
    problem.seed = rng.seed;
    problem.stream = rng.stream;
    problem.offset = c.rng_offset;
    problem.threshold = static_cast<uint32_t>(std::ceil(p * 0x1p24f));
    problem.scale = 1.0f / (1.0f - p);
  }
  Tensor y = c.alloc(x.shape, DType::f32);
  const int64_t n = x.numel();
  c.cost("dropout_add", static_cast<double>(n) * static_cast<double>(size_of(x.dtype) + 8),
         2 * static_cast<double>(n));
  if (!c.planning()) run_forward(c, problem, stream, y);
  if (c.tape && needs_grad({x, stream})) {
    c.tape->watch_sum(y, stream);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      b.tape->uncover(y);  // from here on dy is the gradient of the stream, complete
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      if (!dx.grad) return;
      b.cost("dropout_add.backward",
             static_cast<double>(n) * static_cast<double>(4 + size_of(x.dtype) * (dx.add ? 2 : 1)),
             static_cast<double>(n));
      if (!b.planning()) run_backward(b, problem, dy, dx);
    });
  }
  return y;
}

}  // namespace krait::ops
