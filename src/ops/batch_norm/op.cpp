// Bound by memory, so plain loops do.
#include <algorithm>
#include <cmath>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/batch_norm/batch_norm.h"
#include "krait/ops/batch_norm/cuda.h"
#include "krait/tensor/device.h"

namespace krait::ops {
namespace {

constexpr int64_t kGrain = 64, kMostParts = 64;  // rows that are summed at once, at least; parts

struct Call {
  Tensor x, w, b, running_mean, running_var, y, mean, scale;
  float eps;
  bool training;

  int64_t D() const { return x.size(-1); }
  int64_t rows() const { return x.shape.rows(); }
  int64_t each() const { return std::max(kGrain, (rows() + kMostParts - 1) / kMostParts); }
  int64_t parts() const { return (rows() + each() - 1) / each(); }

  cuda::BatchNormCall on_gpu(double* sums) const {
    return {rows(),
            D(),
            eps,
            x.as<float>(),
            w.as<float>(),
            b.as<float>(),
            running_mean.as<float>(),
            running_var.as<float>(),
            mean.as<float>(),
            scale.as<float>(),
            sums};
  }
};

void check(const Call& q) {
  require(q.x.dtype == DType::f32 && q.x.contiguous() && q.x.rank() >= 1,
          "[batch_norm] x: expected contiguous float32 (..., D), got {} {}", name_of(q.x.dtype),
          q.x.shape);
  require(!q.training || q.rows() > 1, "[batch_norm] x: expected at least two rows, got {}",
          q.x.shape);
  const Shape channels{q.D()};
  const std::pair<const char*, Tensor> vectors[] = {
      {"w", q.w}, {"b", q.b}, {"running_mean", q.running_mean}, {"running_var", q.running_var}};
  for (const auto& [name, t] : vectors)
    require(t.dtype == DType::f32 && t.contiguous() && t.shape == channels,
            "[batch_norm] {}: expected contiguous float32 {}, got {} {}", name, channels,
            name_of(t.dtype), t.shape);
}

Tensor scratch_of(Context& c, const Call& q) {
  int64_t doubles = std::max<int64_t>(q.parts(), 1) * 2 * q.D();
  if (c.device.type == Device::cuda)
    KRAIT_WITH_CUDA(doubles = cuda::batch_norm_sums(q.rows(), q.D()));
  return c.scratch({doubles}, DType::f64);
}

// The first part of sums (parts, 2, D) = the sums over all rows of what f(row, column, first, second) adds.
template <class F>
void sum_columns(const Call& q, double* sums, const F& f) {
  const int64_t D = q.D(), parts = q.parts();
  parallel_for(parts, [&](int64_t i) {
    double *first = sums + i * 2 * D, *second = first + D;
    std::fill_n(first, 2 * D, 0.0);
    for (int64_t r = i * q.each(); r < std::min(q.rows(), (i + 1) * q.each()); ++r)
      for (int64_t d = 0; d < D; ++d) f(r, d, first[d], second[d]);
  });
  for (int64_t i = 1; i < parts; ++i)
    for (int64_t k = 0; k < 2 * D; ++k) sums[k] += sums[i * 2 * D + k];
}

void make_scale(const Call& q, double* sums) {
  const int64_t D = q.D();
  const float* const x = q.x.as<float>();
  if (q.training)
    sum_columns(q, sums, [&](int64_t r, int64_t d, double& sum, double& squares) {
      const auto v = static_cast<double>(x[r * D + d]);
      sum += v;
      squares += v * v;
    });
  const auto n = static_cast<double>(q.rows());
  for (int64_t d = 0; d < D; ++d) {
    auto mean = static_cast<double>(q.running_mean.as<float>()[d]),
         var = static_cast<double>(q.running_var.as<float>()[d]);
    if (q.training) {
      mean = sums[d] / n;
      var = std::max(sums[D + d] / n - mean * mean, 0.0);
    }
    q.mean.as<float>()[d] = static_cast<float>(mean);
    q.scale.as<float>()[d] = static_cast<float>(1 / std::sqrt(var + static_cast<double>(q.eps)));
  }
}

float normed(const Call& q, int64_t r, int64_t d) {
  return (q.x.as<float>()[r * q.D() + d] - q.mean.as<float>()[d]) * q.scale.as<float>()[d];
}

template <class Y>
void run_forward(const Call& q) {
  const int64_t D = q.D();
  parallel_ranges(q.rows(), kGrain, [&](int64_t r, int64_t end) {
    for (; r < end; ++r)
      for (int64_t d = 0; d < D; ++d)
        q.y.as<Y>()[r * D + d] = Y(normed(q, r, d) * q.w.as<float>()[d] + q.b.as<float>()[d]);
  });
}

// What was seen moves towards this call's.
void move(const Call& q) {
  const auto n = static_cast<double>(q.rows());
  for (int64_t d = 0; d < q.D(); ++d) {
    const auto scale = static_cast<double>(q.scale.as<float>()[d]);
    const double var = (1 / (scale * scale) - static_cast<double>(q.eps)) * n / (n - 1);
    float &mean = q.running_mean.as<float>()[d], &seen = q.running_var.as<float>()[d];
    mean += 0.1f * (q.mean.as<float>()[d] - mean);
    seen += 0.1f * (static_cast<float>(var) - seen);
  }
}

template <class Y>
void run_backward(const Call& q, const Tensor& dy, const GradTarget& dx, const GradTarget& dw,
                  const GradTarget& db, double* sums) {
  const int64_t D = q.D();
  const Y* const of_y = dy.as<Y>();
  sum_columns(q, sums, [&](int64_t r, int64_t d, double& of_b, double& of_w) {
    const auto g = static_cast<double>(static_cast<float>(of_y[r * D + d]));
    of_b += g;
    of_w += g * static_cast<double>(normed(q, r, d));
  });
  for (int64_t d = 0; d < D; ++d) {
    const auto put = [d](const GradTarget& to, double value) {
      if (!to.grad) return;
      float& x = to.grad.as<float>()[d];
      x = static_cast<float>(value) + (to.add ? x : 0.0f);
    };
    put(db, sums[d]);
    put(dw, sums[D + d]);
  }
  if (q.training) move(q);
  if (!dx.grad) return;
  const auto n = static_cast<double>(q.rows());
  parallel_ranges(q.rows(), kGrain, [&](int64_t r, int64_t end) {
    for (; r < end; ++r)
      for (int64_t d = 0; d < D; ++d) {
        auto g = static_cast<float>(of_y[r * D + d]);
        if (q.training)
          g -= static_cast<float>(sums[d] / n) +
               normed(q, r, d) * static_cast<float>(sums[D + d] / n);
        g *= q.w.as<float>()[d] * q.scale.as<float>()[d];
        float& to = dx.grad.as<float>()[r * D + d];
        to = dx.add ? to + g : g;
      }
  });
}

void backward(Context& c, const Call& q) {
  const Tensor dy = c.tape->grad(q.y);
  if (!dy) return;
  const GradTarget dx = c.tape->grad_into(c, q.x), dw = c.tape->grad_into(c, q.w),
                   db = c.tape->grad_into(c, q.b);
  c.cost("batch_norm.backward", 5.0 * static_cast<double>(q.x.bytes()),
         8.0 * static_cast<double>(q.x.numel()));
  Scratch scratch(c);
  const Tensor sums = scratch_of(c, q);
  if (c.planning()) return;
  const bool bf = q.y.dtype == DType::bf16;
  if (c.device.type == Device::cuda) {
    const auto sum = [](const GradTarget& t) {
      return cuda::BatchNormSum{t.grad ? t.grad.as<float>() : nullptr, t.add};
    };
    cuda::BatchNormBackward g;
    g.c = q.on_gpu(sums.as<double>());
    g.training = q.training;
    g.dy = dy.data;
    g.bf16 = bf;
    g.dx = dx.grad ? dx.grad.as<float>() : nullptr;
    g.dx_add = dx.add;
    g.dw = sum(dw);
    g.db = sum(db);
    KRAIT_WITH_CUDA(cuda::batch_norm_backward(g, c.stream));
    return;
  }
  bf ? run_backward<bf16>(q, dy, dx, dw, db, sums.as<double>())
     : run_backward<float>(q, dy, dx, dw, db, sums.as<double>());
}

}  // namespace

Tensor batch_norm(Context& c, const Tensor& x, const Tensor& w, const Tensor& b,
                  const Tensor& running_mean, const Tensor& running_var, float eps, DType out) {
  Call q{x, w, b, running_mean, running_var, {}, {}, {}, eps, c.training};
  check(q);
  q.y = c.alloc(x.shape, out);
  q.mean = c.alloc({q.D()}, DType::f32);
  q.scale = c.alloc({q.D()}, DType::f32);
  c.cost("batch_norm", 2.0 * static_cast<double>(x.bytes() + q.y.bytes()),
         5.0 * static_cast<double>(x.numel()));
  {
    Scratch scratch(c);
    const Tensor sums = scratch_of(c, q);
    if (!c.planning() && c.device.type == Device::cuda) {
      KRAIT_WITH_CUDA(cuda::batch_norm(q.on_gpu(sums.as<double>()), q.training, q.y.data,
                                       out == DType::bf16, c.stream));
    } else if (!c.planning()) {
      make_scale(q, sums.as<double>());
      out == DType::bf16 ? run_forward<bf16>(q) : run_forward<float>(q);
    }
  }
  if (c.tape && needs_grad({x, w, b})) {
    c.tape->watch(q.y);
    c.tape->record([q](Context& later) { backward(later, q); });
  }
  return q.y;
}

}  // namespace krait::ops
