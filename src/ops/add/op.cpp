// Bound by memory, so plain loops do.
#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/add/add.h"
#include "krait/ops/add/cuda.h"
#include "krait/tensor/cuda/rows.h"

namespace krait::ops {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements of one piece

template <class T>
void run_forward(const T* a, const T* b, float factor, T* y, int64_t n) {
  parallel_ranges(n, kGrain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) y[i] = T(factor * (static_cast<float>(a[i]) + static_cast<float>(b[i])));
  });
}

template <class T>
void run_backward(const T* dy, float factor, T* to, bool add, int64_t n) {
  parallel_ranges(n, kGrain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const float g = factor * static_cast<float>(dy[i]);
      to[i] = T(add ? static_cast<float>(to[i]) + g : g);
    }
  });
}

}  // namespace

Tensor add(Context& c, const Tensor& a, const Tensor& b, float factor) {
  require((a.dtype == DType::f32 || a.dtype == DType::bf16) && a.dtype == b.dtype &&
              a.shape == b.shape && a.contiguous() && b.contiguous(),
          "[add] a, b: expected two contiguous float32 or bfloat16 tensors of one shape, got {} "
          "{} and {} {}",
          name_of(a.dtype), a.shape, name_of(b.dtype), b.shape);
  Tensor y = c.alloc(a.shape, a.dtype);
  const int64_t n = a.numel();
  const bool bf = a.dtype == DType::bf16;
  c.cost("add", 3.0 * static_cast<double>(a.bytes()), 2.0 * static_cast<double>(n));
  const bool gpu = c.device.type == Device::cuda;
  if (gpu && !c.planning())
    KRAIT_WITH_CUDA(cuda::add(a.data, b.data, bf, factor, y.data, n, c.stream));
  if (!gpu && !c.planning())
    bf ? run_forward(a.as<bf16>(), b.as<bf16>(), factor, y.as<bf16>(), n)
       : run_forward(a.as<float>(), b.as<float>(), factor, y.as<float>(), n);
  if (c.tape && needs_grad({a, b})) {
    c.tape->watch(y);
    c.tape->record([=](Context& back) {
      const Tensor dy = back.tape->grad(y);
      if (!dy) return;
      for (const Tensor& x : {a, b}) {
        const GradTarget g = back.tape->grad_into(back, x);
        if (!g.grad) continue;
        back.cost("add.backward", (g.add ? 3.0 : 2.0) * static_cast<double>(a.bytes()),
                  static_cast<double>(n));
        if (back.planning()) continue;
        if (gpu) {
          const cuda::RowsToConvert rows{dy.data, bf, n, g.grad.data, bf, n, 1, n, g.add, factor};
          KRAIT_WITH_CUDA(cuda::convert_rows(rows, back.stream));
          continue;
        }
        bf ? run_backward(dy.as<bf16>(), factor, g.grad.as<bf16>(), g.add, n)
           : run_backward(dy.as<float>(), factor, g.grad.as<float>(), g.add, n);
      }
    });
  }
  return y;
}

}  // namespace krait::ops
