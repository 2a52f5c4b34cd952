#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

// `uses`: of the same inputs, one after another.
struct Case {
  int64_t B = 1, L = 1, E = 1, J = 1;
  DType dtype = DType::bf16;
  bool of_parameter = true;       // w, whose gradient is float32 then
  bool of_y = true, of_p = true;  // what has a gradient
  int uses = 1;
};

struct Gradients {
  Values y, p, dx, dk, dbias, dw;
};

// In double, from what the header says.
Gradients exact(const Case& c, const Values& x, const Values& k, const Values& bias,
                const Values& w, const Values& dy, const Values& dp) {
  const int64_t T = c.B * c.L;
  const auto at = [](int64_t row, int64_t columns, int64_t column) {
    return static_cast<size_t>(row * columns + column);
  };
  Gradients g{Values(x.size()), Values(at(T, c.J, 0)), Values(x.size()),
              Values(k.size()), Values(bias.size()),   Values(w.size())};
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t e = 0; e < c.E; ++e) {
      const int64_t first = std::max(t - 3, t - t % c.L);
      double z = bias[at(0, 0, e)], d = dy[at(t, c.E, e)];
      for (int64_t u = first; u <= t; ++u) z += k[at(e, 4, 3 - t + u)] * x[at(u, c.E, e)];
      const double s = 1 / (1 + std::exp(-z)), y = z * s;
      g.y[at(t, c.E, e)] = y;
      for (int64_t j = 0; j < c.J; ++j) {
        g.p[at(t, c.J, j)] += y * w[at(j, c.E, e)];
        d += dp[at(t, c.J, j)] * w[at(j, c.E, e)];
        g.dw[at(j, c.E, e)] += dp[at(t, c.J, j)] * y;
      }
      const double dz = d * s * (1 + z * (1 - s));
      g.dbias[at(0, 0, e)] += dz;
      for (int64_t u = first; u <= t; ++u) {
        g.dx[at(u, c.E, e)] += k[at(e, 4, 3 - t + u)] * dz;
        g.dk[at(e, 4, 3 - t + u)] += x[at(u, c.E, e)] * dz;
      }
    }
  }
  return g;
}

void expect_as_defined(const Case& q) {
  SCOPED_TRACE(fmt::format("B={} L={} E={} J={} {} gradients of y {} and p {}, {} uses", q.B, q.L,
                           q.E, q.J, name_of(q.dtype), q.of_y, q.of_p, q.uses));
  TestContext t(true, size_t{64} << 20);
  t.c.activation = q.dtype;
  const Tensor both = t.random({q.B, q.L, 2 * q.E}, q.dtype, 1), x = both.slice(-1, 0, q.E),
               k = t.random({q.E, 4}, DType::f32, 2, {.scale = 0.5}),
               bias = t.random({q.E}, DType::f32, 3),
               w = t.random({q.J, q.E}, q.dtype, 4, {.scale = 0.05});
  if (q.of_parameter) w.var->grad_dtype = DType::f32;
  const auto rounded = [&](Values v) {
    if (q.dtype == DType::bf16)
      for (double& e : v) e = static_cast<float>(bf16(static_cast<float>(e)));
    return v;
  };
  const Values dy = rounded(random_values(q.of_y ? x.numel() : 0, 5)),
               dp = rounded(random_values(q.of_p ? q.B * q.L * q.J : 0, 6));
  ConvProjection result;
  for (int i = 0; i < q.uses; ++i) {
    result = conv1d_projected(t.c, x, k, bias, w);
    if (q.of_y) t.seed_grad(result.y, dy);
    if (q.of_p) t.seed_grad(result.p, dp);
  }
  t.tape.backward(t.c);
  const auto or_zeros = [](const Values& v, int64_t n) {
    return v.empty() ? Values(static_cast<size_t>(n)) : v;
  };
  Gradients g = exact(q, to_double(x), to_double(k), to_double(bias), to_double(w),
                      or_zeros(dy, x.numel()), or_zeros(dp, q.B * q.L * q.J));
  // A row's own gradients are rounded where they are added up; sums over rows see such errors even out.
  const double of_row = q.dtype == DType::bf16 ? 4 * rounding(q.dtype) : 3e-6,
               of_sum = q.dtype == DType::bf16 ? rounding(q.dtype) : 3e-6;
  expect_relative(to_double(result.y), g.y, of_row, "y");
  expect_relative(to_double(result.p), g.p, of_row, "p");
  for (Values* v : {&g.dx, &g.dk, &g.dbias, &g.dw})
    for (double& e : *v) e *= q.uses;
  const auto expect_gradient = [&](const Tensor& of, const Values& as, double tolerance,
                                   const char* name) {
    expect_relative(or_zeros(to_double(t.tape.grad(of)), of.numel()), as, tolerance, name);
  };
  expect_gradient(x, g.dx, of_row, "dx");
  expect_gradient(k, g.dk, of_sum, "dk");
  expect_gradient(bias, g.dbias, of_sum, "dbias");
  expect_gradient(w, g.dw, of_sum, "dw");
}

// What a GPU does in one pass has 2,048 tokens or more, 128 channels at a time, and 80 to 192 columns of p: tiles that
// end with the tokens and between them, sequences that begin anywhere in a step of 16 tokens.
TEST(Conv1dProjected, T14_GradientsAsDefined) {
  for (const Case& q : {Case{.B = 3, .L = 700, .E = 256, .J = 80},
                        {.B = 5, .L = 431, .E = 128, .J = 96},
                        {.B = 1, .L = 2500, .E = 128, .J = 128},
                        {.B = 64, .L = 32, .E = 256, .J = 160},
                        {.B = 2, .L = 1111, .E = 128, .J = 192}})
    expect_as_defined(q);
}

TEST(Conv1dProjected, GradientsAddUpAndMayBeMissing) {
  for (const Case& q : {Case{.B = 2, .L = 1100, .E = 128, .J = 80, .uses = 2},
                        {.B = 1, .L = 2048, .E = 128, .J = 80, .of_y = false},
                        {.B = 1, .L = 2048, .E = 128, .J = 80, .of_p = false},
                        {.B = 1, .L = 2048, .E = 128, .J = 80, .of_parameter = false}})
    expect_as_defined(q);
}

TEST(Conv1dProjected, OfSmallAndUnevenSizes) {
  for (DType type : {DType::f32, DType::bf16})
    for (const Case& q : {Case{.B = 2, .L = 33, .E = 20, .J = 7, .dtype = type},
                          {.B = 1, .L = 3, .E = 128, .J = 80, .dtype = type},
                          {.B = 1, .L = 2050, .E = 72, .J = 80, .dtype = type}})
      expect_as_defined(q);
}

}  // namespace
}  // namespace krait::ops
