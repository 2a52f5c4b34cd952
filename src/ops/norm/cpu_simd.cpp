// A row at a time, lanes along it: one pass for the statistics, which leaves the row in L1, one for y.
#include "krait/ops/norm/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

// s of a row: computed and stored where there is a residual, else x itself.
template <class X>
HWY_INLINE void add_residual(const NormProblem& p, int64_t row) {
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  const float* residual = p.residual + row * p.residual_stride;
  float* sum = p.sum + row * p.D;
  for_lanes(0, p.D, [&](auto d, int64_t i) {
    hn::StoreU(hn::Add(load(d, x + i), hn::LoadU(d, residual + i)), d, sum + i);
  });
}

template <class S, class Y>
HWY_INLINE void norm_row(const NormProblem& p, int64_t row, const S* s) {
  Y* y = static_cast<Y*>(p.y) + row * p.D;
  const auto n = static_cast<float>(p.D);
  float mean = 0.0f;
  if (p.layer) mean = sum_over(p.D, [&](auto d, int64_t i) { return load(d, s + i); }) / n;
  const float square = sum_over(p.D, [&](auto d, int64_t i) {
    const auto v = hn::Sub(load(d, s + i), hn::Set(d, mean));
    return hn::Mul(v, v);
  });
  const float scale = 1.0f / __builtin_sqrtf(square / n + p.eps);
  if (p.scale) p.scale[row] = scale;
  if (p.mean) p.mean[row] = mean;
  for_lanes(0, p.D, [&](auto d, int64_t i) {
    auto v = hn::Mul(hn::Sub(load(d, s + i), hn::Set(d, mean)), hn::Set(d, scale));
    if (p.w) v = hn::Mul(v, hn::LoadU(d, p.w + i));
    if (p.b) v = hn::Add(v, hn::LoadU(d, p.b + i));
    store(d, v, y + i);
  });
}

template <class X, class Y>
void forward_rows(const NormProblem& p, int64_t row, int64_t end) {
  for (; row < end; ++row) {
    if (p.residual) {
      add_residual<X>(p, row);
      norm_row<float, Y>(p, row, p.sum + row * p.D);
    } else {
      norm_row<X, Y>(p, row, static_cast<const X*>(p.x) + row * p.x_stride);
    }
  }
}

// With v = (s - mean) * scale and g = dy * w:
//   ds = scale * (g - mean(g) [layer] - v * mean(g * v)),   dw += dy * v,   db += dy
template <class S, class X, class Y>
HWY_INLINE void backward_row(const NormProblem& p, int64_t row, const S* s, float* dw, float* db) {
  const Y* dy = p.dy ? static_cast<const Y*>(p.dy) + row * p.D : nullptr;
  const float* dsum = p.dsum ? p.dsum + row * p.D : nullptr;
  float* dresidual = p.dresidual ? p.dresidual + row * p.dresidual_stride : nullptr;
  X* dx = p.dx ? static_cast<X*>(p.dx) + row * p.dx_stride : nullptr;
  const float scale = p.scale[row], mean = p.layer ? p.mean[row] : 0.0f;
  const auto value = [&](auto d, int64_t i) {
    return hn::Mul(hn::Sub(load(d, s + i), hn::Set(d, mean)), hn::Set(d, scale));
  };
  const auto slope = [&](auto d, int64_t i) {
    const auto g = load(d, dy + i);
    return p.w ? hn::Mul(g, hn::LoadU(d, p.w + i)) : g;
  };
  float mean_g = 0.0f, mean_gv = 0.0f;
  if (dy) {
    const auto n = static_cast<float>(p.D);
    if (p.layer) mean_g = sum_over(p.D, slope) / n;
    mean_gv =
        sum_over(p.D, [&](auto d, int64_t i) { return hn::Mul(slope(d, i), value(d, i)); }) / n;
  }
  for_lanes(0, p.D, [&](auto d, int64_t i) {
    auto total = hn::Zero(d);
    if (dy) {
      const auto v = value(d, i);
      const auto inner =
          hn::NegMulAdd(v, hn::Set(d, mean_gv), hn::Sub(slope(d, i), hn::Set(d, mean_g)));
      total = hn::Mul(inner, hn::Set(d, scale));
      if (dw) hn::StoreU(hn::MulAdd(load(d, dy + i), v, hn::LoadU(d, dw + i)), d, dw + i);
      if (db) hn::StoreU(hn::Add(load(d, dy + i), hn::LoadU(d, db + i)), d, db + i);
    }
    if (dsum) total = hn::Add(total, hn::LoadU(d, dsum + i));
    if (dresidual) hn::StoreU(total, d, dresidual + i);
    if (dx) store(d, p.dx_add ? hn::Add(total, load(d, dx + i)) : total, dx + i);
  });
}

template <class X, class Y>
void backward_rows(const NormProblem& p, int64_t row, int64_t end, float* dw, float* db) {
  for (; row < end; ++row) {
    if (p.sum) {
      backward_row<float, X, Y>(p, row, p.sum + row * p.D, dw, db);
    } else {
      backward_row<X, X, Y>(p, row, static_cast<const X*>(p.x) + row * p.x_stride, dw, db);
    }
  }
}

void forward(const NormProblem& p, int64_t row, int64_t end) {
  if (p.x_bf16) {
    p.y_bf16 ? forward_rows<bf16, bf16>(p, row, end) : forward_rows<bf16, float>(p, row, end);
  } else {
    p.y_bf16 ? forward_rows<float, bf16>(p, row, end) : forward_rows<float, float>(p, row, end);
  }
}

void backward(const NormProblem& p, int64_t row, int64_t end, float* dw, float* db) {
  if (p.x_bf16) {
    p.y_bf16 ? backward_rows<bf16, bf16>(p, row, end, dw, db)
             : backward_rows<bf16, float>(p, row, end, dw, db);
  } else {
    p.y_bf16 ? backward_rows<float, bf16>(p, row, end, dw, db)
             : backward_rows<float, float>(p, row, end, dw, db);
  }
}

}  // namespace

extern const NormKernels norm_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
