#include <algorithm>
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/moe/gpu.h"
#include "krait/ops/moe/moe.h"
#include "krait/tensor/device.h"
#include "krait/tensor/memory.h"
#include "krait/tensor/products.h"

namespace krait::ops {
namespace {

constexpr int64_t kRows = 16;  // of one piece

bool on_gpu(const Context& c) { return c.device.type == Device::cuda; }
int64_t rows_of(const Routing& r) { return r.token.numel(); }
int64_t experts_of(const Routing& r) { return r.begin.numel() - 1; }

void check_rows(const char* what, const Tensor& x, const Routing& r) {
  require(x.rank() == 2 && x.size(0) == rows_of(r) && x.contiguous(),
          "[moe] {}: expected contiguous ({} rows, D), got {}", what, rows_of(r), x.shape);
}

// Calls fn(type) with a null pointer of the tensor's element type.
template <class Fn>
void by_type(const Tensor& t, const Fn& fn) {
  if (t.dtype == DType::bf16) {
    fn(static_cast<bf16*>(nullptr));
  } else {
    fn(static_cast<float*>(nullptr));
  }
}

float number(float v) { return v; }
float number(bf16 v) { return static_cast<float>(v); }

template <class T>
T* row(const Tensor& t, int64_t i) {
  return t.as<T>() + i * t.row_stride();
}

void zero_unused_rows(const Tensor& t, const Routing& r) {
  zero_bytes(t.slice(0, r.begin.as<int64_t>()[experts_of(r)], t.size(0)));
}

void gather(const Tensor& x, const Routing& r, const Tensor& y) {
  const int64_t D = y.size(1);
  by_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(r.begin.as<int64_t>()[experts_of(r)], kRows, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) std::copy_n(row<T>(x, r.token.as<int32_t>()[i]), D, row<T>(y, i));
    });
  });
  zero_unused_rows(y, r);
}

// dx[t] (+)= Σ_j dy[row[t, j]], j ascending.
void scatter(const Tensor& dy, const Routing& r, const GradTarget& dx) {
  const int64_t T = r.row.size(0), k = r.row.size(1), D = dy.size(1);
  by_type(dy, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(T, kRows, [&](int64_t t, int64_t end) {
      std::vector<float> sum(static_cast<size_t>(D));
      for (; t < end; ++t) {
        E* out = row<E>(dx.grad, t);
        for (int64_t i = 0; i < D; ++i)
          sum[static_cast<size_t>(i)] = dx.add ? number(out[i]) : 0.0f;
        for (int64_t j = 0; j < k; ++j) {
          const int32_t from = r.row.as<int32_t>()[t * k + j];
          if (from < 0) continue;
          const E* d = row<E>(dy, from);
          for (int64_t i = 0; i < D; ++i) sum[static_cast<size_t>(i)] += number(d[i]);
        }
        for (int64_t i = 0; i < D; ++i) out[i] = E(sum[static_cast<size_t>(i)]);
      }
    });
  });
}

// fn(rows of a, rows of b, expert) for each expert that has rows; once, with all rows, while planning.
template <class Fn>
void each_expert(Context& c, const Routing& r, const Tensor& a, const Tensor& b, const Fn& fn) {
  if (c.planning()) return fn(a, b, 0);
  const int64_t* begin = r.begin.as<int64_t>();
  for (int64_t e = 0; e < experts_of(r); ++e)
    if (begin[e + 1] > begin[e])
      fn(a.slice(0, begin[e], begin[e + 1]), b.slice(0, begin[e], begin[e + 1]), e);
}

// The matrix of one expert as (K, N).
Matrix weights(const Tensor& w, int64_t e, bool in_first) {
  const Matrix m = matrix(w.select(0, e));
  return in_first ? m : m.transposed();
}

void linear_backward(Context& c, const Tensor& x, const Tensor& w, const Routing& r, bool in_first,
                     const Tensor& dy) {
  const GradTarget dx = c.tape->grad_into(c, x), dw = c.tape->grad_into(c, w);
  c.cost("moe.expert_linear backward",
         static_cast<double>(2 * dy.bytes() + 2 * x.bytes() + w.bytes()) +
             4.0 * static_cast<double>(w.numel()),
         4.0 * static_cast<double>(x.numel() * dy.size(1)));
  Scratch s(c);
  const Tensor dy_ready = in_type(c, dy, w.dtype), x_ready = in_type(c, x, w.dtype);
  if (on_gpu(c)) {
    if (dx.grad) product_on_gpu(c, r, dy_ready, w, !in_first, dx.grad, dx.add);
    if (dw.grad)
      weight_gradient_on_gpu(c, r, in_first ? x_ready : dy_ready, in_first ? dy_ready : x_ready,
                             dw);
    return;
  }
  if (dx.grad) {
    each_expert(c, r, dy_ready, dx.grad, [&](const Tensor& d, const Tensor& to, int64_t e) {
      multiply(c, matrix(d), weights(w, e, in_first).transposed(), to, {.add = dx.add});
    });
    if (!dx.add && !c.planning()) zero_unused_rows(dx.grad, r);
  }
  if (!dw.grad) return;
  if (!dw.add) fill(c, dw.grad, 0.0f);  // experts without tokens
  each_expert(c, r, dy_ready, x_ready, [&](const Tensor& d, const Tensor& from, int64_t e) {
    const Matrix a = matrix(in_first ? from : d).transposed(), b = matrix(in_first ? d : from);
    multiply(c, a, b, dw.grad.select(0, e), {.add = true});
  });
}

void combine_forward(const Tensor& y, const Routing& r, const Tensor& stream, const Tensor& out) {
  const int64_t T = r.row.size(0), k = r.row.size(1), D = y.size(1);
  by_type(y, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(T, kRows, [&](int64_t t, int64_t end) {
      for (; t < end; ++t) {
        float* to = out.as<float>() + t * D;
        std::copy_n(stream.as<float>() + t * D, D, to);
        for (int64_t j = 0; j < k; ++j) {
          const int32_t from = r.row.as<int32_t>()[t * k + j];
          if (from < 0) continue;
          const float w = r.weight.as<float>()[t * k + j];
          const E* v = row<E>(y, from);
          for (int64_t i = 0; i < D; ++i) to[i] += w * number(v[i]);
        }
      }
    });
  });
}

void combine_backward(const Tensor& y, const Routing& r, const Tensor& dout, const GradTarget& dy,
                      const GradTarget& dweight) {
  const int64_t T = r.row.size(0), k = r.row.size(1), D = y.size(1);
  by_type(y, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(T, kRows, [&](int64_t t, int64_t end) {
      for (int64_t i = t * k; i < end * k; ++i) {
        const int32_t from = r.row.as<int32_t>()[i];
        const float *d = dout.as<float>() + i / k * D, w = r.weight.as<float>()[i];
        float sum = 0;
        for (int64_t x = 0; from >= 0 && x < D; ++x) sum += d[x] * number(row<E>(y, from)[x]);
        if (dweight.grad) {
          float& to = dweight.grad.as<float>()[i];
          to = dweight.add ? to + sum : sum;
        }
        if (!dy.grad || from < 0) continue;
        E* to = row<E>(dy.grad, from);
        for (int64_t x = 0; x < D; ++x) to[x] = E(dy.add ? number(to[x]) + w * d[x] : w * d[x]);
      }
    });
  });
  if (dy.grad && !dy.add) zero_unused_rows(dy.grad, r);
}

}  // namespace

Tensor dispatch(Context& c, const Tensor& x, const Routing& r) {
  require(x.shape.rows() == r.row.size(0) && x.row_strided(),
          "[moe] x: expected {} rows at one distance, got {}", r.row.size(0), x.shape);
  Tensor y = c.alloc({rows_of(r), x.size(-1)}, x.dtype);
  c.cost("moe.dispatch", 2.0 * static_cast<double>(y.bytes()), 0);
  if (!c.planning()) on_gpu(c) ? dispatch_on_gpu(c, r, x, y) : gather(x, r, y);
  if (c.tape && x.var) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      b.cost("moe.dispatch backward", 2.0 * static_cast<double>(y.bytes()), 0);
      if (!b.planning()) on_gpu(b) ? undo_dispatch_on_gpu(b, r, dy, dx) : scatter(dy, r, dx);
    });
  }
  return y;
}

Tensor expert_linear(Context& c, const Tensor& x, const Tensor& w, const Routing& r, bool in_first,
                     DType out) {
  check_rows("x", x, r);
  const int64_t K = x.size(1);
  require(w.rank() == 3 && w.contiguous() && w.size(0) == experts_of(r) &&
              w.size(in_first ? 1 : 2) == K,
          "[moe] w: expected contiguous ({}, {}), got {}", experts_of(r),
          in_first ? fmt::format("K={}, N", K) : fmt::format("N, K={}", K), w.shape);
  const Kept kept(c);
  Tensor y = c.alloc({x.size(0), w.size(in_first ? 2 : 1)}, out);
  c.cost("moe.expert_linear", static_cast<double>(x.bytes() + w.bytes() + y.bytes()),
         2.0 * static_cast<double>(x.numel() * y.size(1)));
  {
    Scratch s(c);
    const Tensor ready = in_type(c, x, w.dtype);
    if (on_gpu(c)) product_on_gpu(c, r, ready, w, in_first, y, false);
    if (!on_gpu(c))
      each_expert(c, r, ready, y, [&](const Tensor& from, const Tensor& to, int64_t e) {
        multiply(c, matrix(from), weights(w, e, in_first), to);
      });
    if (!c.planning() && !on_gpu(c)) zero_unused_rows(y, r);
  }
  if (c.tape && needs_grad({x, w})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (dy) linear_backward(b, x, w, r, in_first, dy);
    });
  }
  return y;
}

Tensor combine(Context& c, const Tensor& y, const Routing& r, const Tensor& stream) {
  check_rows("y", y, r);
  require(stream.dtype == DType::f32 && stream.contiguous() && stream.size(-1) == y.size(1) &&
              stream.shape.rows() == r.row.size(0),
          "[moe] stream: expected contiguous float32 ({} tokens, D={}), got {} {}", r.row.size(0),
          y.size(1), name_of(stream.dtype), stream.shape);
  Tensor out = c.alloc(stream.shape, DType::f32);
  c.cost("moe.combine", static_cast<double>(y.bytes() + 2 * out.bytes()),
         2.0 * static_cast<double>(y.numel()));
  if (!c.planning())
    on_gpu(c) ? combine_on_gpu(c, r, y, stream, out) : combine_forward(y, r, stream, out);
  if (c.tape && needs_grad({y, r.weight, stream})) {
    c.tape->watch_sum(out, stream);
    c.tape->record([=](Context& b) {
      if (const Tensor dout = b.tape->grad(out)) {
        const GradTarget dy = b.tape->grad_into(b, y), dweight = b.tape->grad_into(b, r.weight);
        b.cost("moe.combine backward", static_cast<double>(2 * y.bytes() + dout.bytes()),
               4.0 * static_cast<double>(y.numel()));
        if (!b.planning())
          on_gpu(b) ? undo_combine_on_gpu(b, r, y, dout, dy, dweight)
                    : combine_backward(y, r, dout, dy, dweight);
      }
      b.tape->uncover(out);
    });
  }
  return out;
}

}  // namespace krait::ops
