#include <cstring>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/concat/concat.h"
#include "krait/tensor/cuda/rows.h"
#include "krait/tensor/device.h"

namespace krait::ops {
namespace {

constexpr int64_t kRows = 64;

std::byte* row_of(const Tensor& t, int64_t row) {
  return static_cast<std::byte*>(t.data) +
         row * t.row_stride() * static_cast<int64_t>(size_of(t.dtype));
}

// to = from, or to += from; rows at one distance, equal shapes and types.
void copy_rows(const Context& c, const Tensor& from, const Tensor& to, bool add) {
  const int64_t n = from.size(-1);
  if (c.device.type == Device::cuda) {
    const bool half = from.dtype == DType::bf16;
    const cuda::RowsToConvert rows = {from.data,         half, from.row_stride(),
                                      to.data,           half, to.row_stride(),
                                      from.shape.rows(), n,    add};
    KRAIT_WITH_CUDA(cuda::convert_rows(rows, c.stream));
    return;
  }
  parallel_ranges(from.shape.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::byte *const a = row_of(from, row), *const b = row_of(to, row);
      if (!add) {
        std::memcpy(b, a, static_cast<size_t>(n) * size_of(from.dtype));
      } else if (from.dtype == DType::f32) {
        for (int64_t i = 0; i < n; ++i)
          reinterpret_cast<float*>(b)[i] += reinterpret_cast<const float*>(a)[i];
      } else {
        for (int64_t i = 0; i < n; ++i) {
          bf16& x = reinterpret_cast<bf16*>(b)[i];
          x = bf16(static_cast<float>(x) + static_cast<float>(reinterpret_cast<const bf16*>(a)[i]));
        }
      }
    }
  });
}

}  // namespace

Tensor concat(Context& c, const Tensor& a, const Tensor& b) {
  require(a.rank() >= 1 && a.row_strided() && (a.dtype == DType::f32 || a.dtype == DType::bf16),
          "[concat] a: expected float32 or bfloat16 with rows at one distance, got {} {}",
          name_of(a.dtype), a.shape);
  Shape like = a.shape, shape = a.shape;
  if (b.rank() == a.rank()) like[-1] = b.size(-1), shape[-1] += b.size(-1);
  require(b.shape == like && b.dtype == a.dtype && b.row_strided(),
          "[concat] b: expected {} rows like those of a, {}, got {} {}", name_of(a.dtype), a.shape,
          name_of(b.dtype), b.shape);
  Tensor y = c.alloc(shape, a.dtype);
  const int64_t M = a.size(-1), N = b.size(-1);
  c.cost("concat", 2 * static_cast<double>(y.bytes()), 0);
  if (!c.planning()) {
    copy_rows(c, a, y.slice(-1, 0, M), false);
    copy_rows(c, b, y.slice(-1, M, M + N), false);
  }
  if (c.tape && needs_grad({a, b})) {
    c.tape->watch(y);
    c.tape->record([a, b, y, M, N](Context& later) {
      const Tensor dy = later.tape->grad(y);
      if (!dy) return;
      const GradTarget da = later.tape->grad_into(later, a), db = later.tape->grad_into(later, b);
      later.cost("concat backward", 2 * static_cast<double>(dy.bytes()), 0);
      if (later.planning()) return;
      if (da.grad) copy_rows(later, dy.slice(-1, 0, M), da.grad, da.add);
      if (db.grad) copy_rows(later, dy.slice(-1, M, M + N), db.grad, db.add);
    });
  }
  return y;
}

}  // namespace krait::ops
