#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/glu/glu.h"
#include "krait/ops/glu/kernels.h"

namespace krait::ops {

static constexpr int64_t kGrain = 16;  // rows of one piece

static std::byte* at(const Tensor& t, int64_t row) {
  return static_cast<std::byte*>(t.data) +
         row * t.size(-1) * static_cast<int64_t>(size_of(t.dtype));
}

Tensor glu(Context& c, const Tensor& x) {
  require(c.device.type == Device::cpu, "[glu] runs on the CPU only");
  require((x.dtype == DType::f32 || x.dtype == DType::bf16) && x.contiguous() && x.rank() >= 1 &&
              x.size(-1) % 2 == 0,
          "[glu] x: expected contiguous float32 or bfloat16 (..., 2H), got {} {}", name_of(x.dtype),
          x.shape);
  Shape half = x.shape;
  half[-1] /= 2;
  Tensor y = c.alloc(half, x.dtype);
  const int64_t rows = x.shape.rows(), H = half[-1];
  const bool bf16 = x.dtype == DType::bf16;
  const auto bytes = static_cast<double>(x.bytes());
  const auto n = static_cast<double>(y.numel());
  c.cost("glu", 1.5 * bytes, 20 * n);
  if (!c.planning())
    parallel_ranges(rows, kGrain, [&](int64_t begin, int64_t end) {
      KRAIT_PICK_ISA(glu_kernels).forward(at(x, begin), at(y, begin), bf16, end - begin, H);
    });
  if (c.tape && needs_grad({x})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      b.cost("glu.backward", bytes * (dx.add ? 3.5 : 2.5), 30 * n);
      if (b.planning()) return;
      parallel_ranges(rows, kGrain, [&](int64_t begin, int64_t end) {
        KRAIT_PICK_ISA(glu_kernels)
            .backward(at(x, begin), at(dy, begin), at(dx.grad, begin), bf16, dx.add, end - begin,
                      H);
      });
    });
  }
  return y;
}

}  // namespace krait::ops
