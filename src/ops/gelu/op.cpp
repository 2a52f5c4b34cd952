#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/gelu/gelu.h"
#include "krait/ops/gelu/kernels.h"

namespace krait::ops {

static constexpr int64_t kGrain = 1 << 14;  // elements of one piece

static std::byte* at(const Tensor& t, int64_t i) {
  return static_cast<std::byte*>(t.data) + i * static_cast<int64_t>(size_of(t.dtype));
}

Tensor gelu(Context& c, const Tensor& x) {
  require(c.device.type == Device::cpu, "[gelu] runs on the CPU only");
  require((x.dtype == DType::f32 || x.dtype == DType::bf16) && x.contiguous(),
          "[gelu] x: expected contiguous float32 or bfloat16, got {} {}", name_of(x.dtype),
          x.shape);
  Tensor y = c.alloc(x.shape, x.dtype);
  const int64_t n = x.numel();
  const bool bf16 = x.dtype == DType::bf16;
  const auto bytes = static_cast<double>(x.bytes());
  c.cost("gelu", 2 * bytes, 40 * static_cast<double>(n));
  if (!c.planning())
    parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
      KRAIT_PICK_ISA(gelu_kernels).forward(at(x, begin), at(y, begin), bf16, end - begin);
    });
  if (c.tape && needs_grad({x})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      require(dx.grad.contiguous(), "[gelu] x: expected a gradient without gaps");
      b.cost("gelu.backward", bytes * (dx.add ? 4 : 3), 60 * static_cast<double>(n));
      if (b.planning()) return;
      parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
        KRAIT_PICK_ISA(gelu_kernels)
            .backward(at(x, begin), at(dy, begin), at(dx.grad, begin), bf16, dx.add, end - begin);
      });
    });
  }
  return y;
}

}  // namespace krait::ops
