// Bound by memory, so plain loops do.
#include <algorithm>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/scale/scale.h"
#include "krait/tensor/cuda/rows.h"

namespace krait::ops {
namespace {

constexpr int64_t kPiece = 1 << 14;  // elements

// to = factor · from, or to += factor · from; row by row.
template <class T>
void run(const Tensor& from, const Tensor& to, const std::vector<Stretch>& stretches, bool add) {
  const int64_t grain = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, from.size(-1)));
  parallel_ranges(from.shape.rows(), grain, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      const T* a = from.as<T>() + row * from.row_stride();
      T* b = to.as<T>() + row * to.row_stride();
      for (const Stretch& s : stretches) {
        for (int64_t i = 0; i < s.columns; ++i) {
          const float v = s.factor * static_cast<float>(a[i]);
          b[i] = T(add ? static_cast<float>(b[i]) + v : v);
        }
        a += s.columns, b += s.columns;
      }
    }
  });
}

void run_on_gpu([[maybe_unused]] Context& c, const Tensor& from, const Tensor& to,
                const std::vector<Stretch>& stretches, bool add) {
  const bool bf = from.dtype == DType::bf16;
  int64_t column = 0;
  for (const Stretch& s : stretches) {
    const int64_t bytes = column * static_cast<int64_t>(size_of(from.dtype));
    cuda::RowsToConvert r{};
    r.from = static_cast<const std::byte*>(from.data) + bytes;
    r.from_bf16 = r.to_bf16 = bf;
    r.from_step = from.row_stride();
    r.to = static_cast<std::byte*>(to.data) + bytes;
    r.to_step = to.row_stride();
    r.rows = from.shape.rows();
    r.cols = s.columns;
    r.add = add;
    r.factor = s.factor;
    KRAIT_WITH_CUDA(cuda::convert_rows(r, c.stream));
    column += s.columns;
  }
}

void run(Context& c, const Tensor& from, const Tensor& to, const std::vector<Stretch>& stretches,
         bool add) {
  if (c.device.type == Device::cuda) return run_on_gpu(c, from, to, stretches, add);
  from.dtype == DType::bf16 ? run<bf16>(from, to, stretches, add)
                            : run<float>(from, to, stretches, add);
}

}  // namespace

Tensor scale(Context& c, const Tensor& x, const std::vector<Stretch>& stretches) {
  require((x.dtype == DType::f32 || x.dtype == DType::bf16) && x.rank() >= 1 && x.row_strided(),
          "[scale] x: expected float32 or bfloat16 (..., F) with rows at one distance, got {} {}",
          name_of(x.dtype), x.shape);
  int64_t columns = 0;
  for (const Stretch& s : stretches) {
    require(s.columns >= 0, "[scale] a stretch of {} columns", s.columns);
    columns += s.columns;
  }
  require(columns == x.size(-1), "[scale] expected stretches of {} columns in all, got {}",
          x.size(-1), columns);
  if (std::all_of(stretches.begin(), stretches.end(),
                  [](const Stretch& s) { return s.factor == 1 || s.columns == 0; }))
    return x;
  Tensor y = c.alloc(x.shape, x.dtype);
  const auto n = static_cast<double>(x.numel());
  c.cost("scale", 2 * static_cast<double>(y.bytes()), n);
  if (!c.planning()) run(c, x, y, stretches, false);
  if (c.tape && needs_grad({x})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      b.cost("scale.backward", (dx.add ? 3 : 2) * static_cast<double>(y.bytes()), n);
      if (!b.planning()) run(b, dy, dx.grad, stretches, dx.add);
    });
  }
  return y;
}

Tensor scale(Context& c, const Tensor& x, float factor) {
  return scale(c, x, std::vector<Stretch>{{x.size(-1), factor}});
}

}  // namespace krait::ops
