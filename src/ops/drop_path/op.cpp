// Bound by memory, so plain loops do.
#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/drop_path/cuda.h"
#include "krait/ops/drop_path/drop_path.h"
#include "krait/tensor/device.h"

namespace krait::ops {
namespace {

struct Rows {
  Philox rng;
  const uint64_t* offset = nullptr;  // on a GPU: see Context::rng_offset
  float p = 0;

  float scale(int64_t b) const {
    if (p == 0) return 1;
    return rng.uniform(static_cast<uint64_t>(b)) >= p ? 1 / (1 - p) : 0.0f;
  }
  cuda::DropPathRows on_gpu(int64_t B, int64_t n) const {
    return {rng.seed, rng.stream, offset, p, B, n};
  }
};

template <class T>
void run_forward(const Rows& rows, const T* x, const float* stream, float* y, int64_t B,
                 int64_t n) {
  parallel_for(B, [&](int64_t b) {
    const float scale = rows.scale(b);
    for (int64_t i = b * n; i < (b + 1) * n; ++i)
      y[i] = stream[i] + scale * static_cast<float>(x[i]);
  });
}

template <class T>
void run_backward(const Rows& rows, const float* dy, T* dx, bool add, int64_t B, int64_t n) {
  parallel_for(B, [&](int64_t b) {
    const float scale = rows.scale(b);
    for (int64_t i = b * n; i < (b + 1) * n; ++i)
      dx[i] = T((add ? static_cast<float>(dx[i]) : 0.0f) + scale * dy[i]);
  });
}

}  // namespace

Tensor drop_path_add(Context& c, const Tensor& x, const Tensor& stream, float p) {
  require((x.dtype == DType::f32 || x.dtype == DType::bf16) && x.contiguous() && x.rank() >= 1,
          "[drop_path_add] x: expected contiguous float32 or bfloat16 (B, ...), got {} {}",
          name_of(x.dtype), x.shape);
  require(stream.dtype == DType::f32 && stream.contiguous() && stream.shape == x.shape,
          "[drop_path_add] stream: expected contiguous float32 {}, got {} {}", x.shape,
          name_of(stream.dtype), stream.shape);
  require(p >= 0.0f && p < 1.0f, "[drop_path_add] p: expected at least 0 and below 1, got {}", p);
  Rows rows;
  if (c.training && p > 0.0f) rows = {c.draw(), c.rng_offset, p};
  Tensor y = c.alloc(x.shape, DType::f32);
  const int64_t B = x.size(0), n = B > 0 ? x.numel() / B : 0;
  const bool bf = x.dtype == DType::bf16;
  c.cost("drop_path_add", static_cast<double>(x.bytes() + 2 * y.bytes()),
         2.0 * static_cast<double>(y.numel()));
  const bool gpu = c.device.type == Device::cuda;
  if (gpu && !c.planning())
    KRAIT_WITH_CUDA(cuda::drop_path_forward(rows.on_gpu(B, n), x.data, bf, stream.as<float>(),
                                            y.as<float>(), c.stream));
  if (!gpu && !c.planning())
    bf ? run_forward(rows, x.as<bf16>(), stream.as<float>(), y.as<float>(), B, n)
       : run_forward(rows, x.as<float>(), stream.as<float>(), y.as<float>(), B, n);
  if (c.tape && needs_grad({x, stream})) {
    c.tape->watch_sum(y, stream);
    c.tape->record([=](Context& back) {
      const Tensor dy = back.tape->grad(y);
      back.tape->uncover(y);  // from here on dy is the gradient of the stream, complete
      if (!dy) return;
      const GradTarget dx = back.tape->grad_into(back, x);
      if (!dx.grad) return;
      back.cost("drop_path_add.backward", static_cast<double>(y.bytes() + x.bytes()),
                static_cast<double>(y.numel()));
      if (back.planning()) return;
      if (gpu) {
        KRAIT_WITH_CUDA(cuda::drop_path_backward(rows.on_gpu(B, n), dy.as<float>(), dx.grad.data,
                                                 bf, dx.add, back.stream));
        return;
      }
      bf ? run_backward(rows, dy.as<float>(), dx.grad.as<bf16>(), dx.add, B, n)
         : run_backward(rows, dy.as<float>(), dx.grad.as<float>(), dx.add, B, n);
    });
  }
  return y;
}

}  // namespace krait::ops
