#include <algorithm>
#include <cmath>
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/moe/gpu.h"
#include "krait/ops/moe/moe.h"
#include "krait/tensor/products.h"

namespace krait::ops {
namespace {

constexpr int64_t kTokens = 64;  // of one piece

struct Sizes {
  int64_t T, n, k;
};

void softmax_in_place(float* p, int64_t n) {
  const float top = *std::max_element(p, p + n);
  float sum = 0;
  for (int64_t e = 0; e < n; ++e) sum += p[e] = std::exp(p[e] - top);
  for (int64_t e = 0; e < n; ++e) p[e] /= sum;
}

// The k largest of p, best first.
void choose(const float* p, const Sizes& z, bool renormalize, int32_t* expert, float* weight) {
  float sum = 0;
  for (int64_t j = 0; j < z.k; ++j) {
    int32_t best = -1;
    for (int32_t e = 0; e < z.n; ++e)
      if (std::find(expert, expert + j, e) == expert + j && (best < 0 || p[e] > p[best])) best = e;
    expert[j] = best;
    weight[j] = p[best];
    sum += p[best];
  }
  for (int64_t j = 0; renormalize && j < z.k; ++j) weight[j] /= sum;
}

// Sorts the choices by expert, in the order of the tokens; returns the number dropped.
int64_t sort_by_expert(const Sizes& z, int64_t capacity, const Routing& r) {
  const int32_t* expert = r.expert.as<int32_t>();
  int64_t* begin = r.begin.as<int64_t>();
  std::fill_n(begin, z.n + 1, int64_t{0});
  for (int64_t i = 0; i < z.T * z.k; ++i) ++begin[expert[i] + 1];
  for (int64_t e = 0; e < z.n; ++e) begin[e + 1] = begin[e] + std::min(begin[e + 1], capacity);
  const int64_t used = begin[z.n];
  std::vector<int64_t> next(begin, begin + z.n);
  for (int64_t i = 0; i < z.T * z.k; ++i) {
    int64_t& at = next[static_cast<size_t>(expert[i])];
    const bool kept = at < begin[expert[i] + 1];
    r.row.as<int32_t>()[i] = kept ? static_cast<int32_t>(at) : -1;
    if (kept) r.token.as<int32_t>()[at++] = static_cast<int32_t>(i / z.k);
  }
  std::fill(r.token.as<int32_t>() + used, r.token.as<int32_t>() + z.T * z.k, -1);
  return z.T * z.k - used;
}

// f_e · n / T: what the balance loss multiplies the sum of p[:, e] by.
std::vector<double> balance_slopes(const Sizes& z, const int32_t* expert) {
  std::vector<double> slope(static_cast<size_t>(z.n));
  const double T = static_cast<double>(z.T);
  for (int64_t i = 0; i < z.T * z.k; ++i)
    slope[static_cast<size_t>(expert[i])] += static_cast<double>(z.n) / T / T;
  return slope;
}

double balance_loss(const Sizes& z, const float* p, const int32_t* expert) {
  const std::vector<double> slope = balance_slopes(z, expert);
  double loss = 0;
  for (int64_t i = 0; i < z.T * z.n; ++i)
    loss += slope[static_cast<size_t>(i % z.n)] * static_cast<double>(p[i]);
  return loss;
}

void logits_gradient(const Sizes& z, const RouteOptions& o, const Routing& r, const Tensor& p,
                     const Tensor& dweight, const Tensor& dlogits) {
  const std::vector<double> slope = balance_slopes(z, r.expert.as<int32_t>());
  const float balance = o.balance * o.balance_gradient;
  parallel_ranges(z.T, kTokens, [&](int64_t t, int64_t end) {
    std::vector<float> dp(static_cast<size_t>(z.n));
    for (; t < end; ++t) {
      const float *pt = p.as<float>() + t * z.n, *w = r.weight.as<float>() + t * z.k;
      const int32_t* expert = r.expert.as<int32_t>() + t * z.k;
      for (size_t e = 0; e < dp.size(); ++e) dp[e] = balance * static_cast<float>(slope[e]);
      if (dweight) {
        const float* dw = dweight.as<float>() + t * z.k;
        float sum = 1, mean = 0;  // of the chosen p, of dw under the weights
        if (o.renormalize) {
          sum = 0;
          for (int64_t j = 0; j < z.k; ++j) sum += pt[expert[j]], mean += dw[j] * w[j];
        }
        for (int64_t j = 0; j < z.k; ++j)
          dp[static_cast<size_t>(expert[j])] += (dw[j] - mean) / sum;
      }
      float dot = 0;
      for (int64_t e = 0; e < z.n; ++e) dot += pt[e] * dp[static_cast<size_t>(e)];
      float* out = dlogits.as<float>() + t * z.n;
      for (int64_t e = 0; e < z.n; ++e) out[e] = pt[e] * (dp[static_cast<size_t>(e)] - dot);
    }
  });
}

// The router's matrix as (D, n).
Matrix router(const Tensor& w, bool in_first) {
  return in_first ? matrix(w) : matrix(w).transposed();
}

int64_t capacity_of(const Sizes& z, const RouteOptions& o) {
  const double room = o.capacity_factor * static_cast<double>(z.T * z.k) / static_cast<double>(z.n);
  return o.capacity_factor > 0 ? std::min(static_cast<int64_t>(room), z.T) : z.T;
}

cuda::MoeRoute on_gpu(const Sizes& z, const RouteOptions& o, const Routing& r, const Tensor& p,
                      const Tensor& slope) {
  cuda::MoeRoute q;
  q.r = gpu_routing(r);
  q.renormalize = o.renormalize;
  q.capacity = capacity_of(z, o);
  q.balance = o.balance;
  q.p = p.as<float>();
  q.slope = slope.as<double>();
  return q;
}

// p, now scores, and the routing; slope (n) float64: see cuda.h.
void route_on_gpu(Context& c, const Sizes& z, const RouteOptions& o, const Routing& r,
                  const Tensor& p, const Tensor& slope, const Tensor& report) {
  Scratch s(c);
  const Shape parts{cuda::moe_pieces(z.T), z.n};
  const Tensor counts = c.scratch(parts, DType::i64), sums = c.scratch(parts, DType::f64);
  if (c.planning()) return;
  cuda::MoeRoute q = on_gpu(z, o, r, p, slope);
  q.counts = counts.as<int64_t>();
  q.sums = sums.as<double>();
  q.report = report ? report.as<float>() : nullptr;
  KRAIT_WITH_CUDA(cuda::moe_route(q, c.stream));
}

void backward(Context& c, const Sizes& z, const RouteOptions& o, const Routing& r, const Tensor& x,
              const Tensor& w, bool in_first, const Tensor& p, const Tensor& slope,
              const Tensor& dweight) {
  const GradTarget dx = c.tape->grad_into(c, x), dw = c.tape->grad_into(c, w);
  c.cost("moe.route backward", static_cast<double>(2 * x.bytes()),
         4.0 * static_cast<double>(x.numel() * z.n));
  Scratch s(c);
  const Tensor dlogits = c.scratch({z.T, z.n}, DType::f32);
  if (c.planning()) {
  } else if (slope) {
    KRAIT_WITH_CUDA(cuda::moe_route_backward(
        {on_gpu(z, o, r, p, slope), dweight ? dweight.as<float>() : nullptr,
         o.balance * o.balance_gradient, dlogits.as<float>()},
        c.stream));
  } else {
    logits_gradient(z, o, r, p, dweight, dlogits);
  }
  if (dx.grad)
    multiply(c, matrix(dlogits), router(w, in_first).transposed(), dx.grad, {.add = dx.add});
  if (!dw.grad) return;
  const Matrix a = matrix(in_type(c, x, DType::f32)), b = matrix(dlogits);
  multiply(c, (in_first ? a : b).transposed(), in_first ? b : a, dw.grad, {.add = dw.add});
}

}  // namespace

Routing route(Context& c, const Tensor& x, const Tensor& w, bool in_first, const RouteOptions& o,
              const Tensor& report) {
  require(w.dtype == DType::f32 && w.contiguous() && w.rank() == 2 && x.rank() >= 1 &&
              x.row_strided() && x.size(-1) == w.size(in_first ? 0 : 1),
          "[moe] router: x {} and w {} {} do not fit: expected (..., D) and contiguous float32 {}",
          x.shape, name_of(w.dtype), w.shape, in_first ? "(D, n)" : "(n, D)");
  const Sizes z{x.shape.rows(), w.size(in_first ? 1 : 0), o.k};
  require(z.k >= 1 && z.k <= z.n, "[moe] k: expected 1 to {} experts a token, got {}", z.n, z.k);
  require(z.T * z.k < INT32_MAX, "[moe] {} choices are more than 2^31", z.T * z.k);
  const Kept kept(c);
  Routing r;
  r.weight = c.alloc({z.T, z.k}, DType::f32);
  r.expert = c.alloc({z.T, z.k}, DType::i32);
  r.row = c.alloc({z.T, z.k}, DType::i32);
  r.token = c.alloc({z.T * z.k}, DType::i32);
  r.begin = c.alloc({z.n + 1}, DType::i64);
  const bool gpu = c.device.type == Device::cuda;
  const Tensor p = c.alloc({z.T, z.n}, DType::f32);
  const Tensor slope = gpu ? c.alloc({z.n}, DType::f64) : Tensor();
  c.cost("moe.route", static_cast<double>(x.bytes()), 2.0 * static_cast<double>(x.numel() * z.n));
  {
    Scratch s(c);
    multiply(c, matrix(in_type(c, x, DType::f32)), router(w, in_first), p);
  }
  if (gpu) {
    route_on_gpu(c, z, o, r, p, slope, report);
  } else if (!c.planning()) {
    parallel_ranges(z.T, kTokens, [&](int64_t t, int64_t end) {
      for (; t < end; ++t) {
        float* pt = p.as<float>() + t * z.n;
        softmax_in_place(pt, z.n);
        choose(pt, z, o.renormalize, r.expert.as<int32_t>() + t * z.k,
               r.weight.as<float>() + t * z.k);
      }
    });
    const int64_t dropped = sort_by_expert(z, capacity_of(z, o), r);
    if (report) {
      report.as<float>()[0] =
          o.balance * static_cast<float>(balance_loss(z, p.as<float>(), r.expert.as<int32_t>()));
      report.as<float>()[1] = static_cast<float>(dropped);
    }
  }
  if (c.tape && needs_grad({x, w})) {
    c.tape->watch(r.weight);
    c.tape->record([=](Context& b) {
      const Tensor dweight = b.tape->grad(r.weight);
      if (dweight || o.balance != 0) backward(b, z, o, r, x, w, in_first, p, slope, dweight);
    });
  }
  return r;
}

}  // namespace krait::ops
