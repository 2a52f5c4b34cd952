#include "krait/ops/batch_norm/batch_norm.h"

#include "krait/ops/batch_norm/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr float kEps = 1e-5f;

struct Normed {
  TestContext t{true, size_t{32} << 20};
  Tensor x, w, b, mean, var, y;
  Values cotangent;

  Normed(const Shape& shape, DType out, bool training) {
    const int64_t D = shape[-1];
    t.c.training = training;
    x = t.random(shape, DType::f32, 1, {.mean = 3, .scale = 2});
    w = t.random({D}, DType::f32, 2, {.mean = 1, .scale = 0.3});
    b = t.random({D}, DType::f32, 3);
    mean = t.random({D}, DType::f32, 4, {.mean = 2, .watched = false});
    var = t.random({D}, DType::f32, 5, {.mean = 4, .scale = 0.5, .watched = false});
    y = batch_norm(t.c, x, w, b, mean, var, kEps, out);
    cotangent = random_values(x.numel(), 6);
    t.seed_grad(y, cotangent);
  }
  void back() { t.tape.backward(t.c); }
};

// Several parts of rows, and columns off the tile; the last case has rows enough that parts grow.
const Shape kShapes[] = {{2, 7}, {3, 50, 33}, {300, 5}, {9000, 3}};

TEST(BatchNorm, TrainingNormsByTheRowsOfTheCall) {
  for (const Shape& shape : kShapes)
    for (const DType out : {DType::f32, DType::bf16}) {
      Normed r(shape, out, true);
      const int64_t D = shape[-1];
      Values mean, var;
      const Values exact = batch_norm_reference<double>(D, kEps, to_double(r.x), to_double(r.w),
                                                        to_double(r.b), mean, var);
      expect_relative(to_double(r.y), exact, rounding(out) + 6 * rounding(DType::f32), "y");
      const Values seen_mean = to_double(r.mean), seen_var = to_double(r.var);
      r.back();
      const auto n = static_cast<double>(r.x.numel() / D);
      for (size_t d = 0; d < static_cast<size_t>(D); ++d) {
        EXPECT_NEAR(get(r.mean, static_cast<int64_t>(d)), 0.9 * seen_mean[d] + 0.1 * mean[d], 1e-6);
        EXPECT_NEAR(get(r.var, static_cast<int64_t>(d)),
                    0.9 * seen_var[d] + 0.1 * var[d] * n / (n - 1), 4e-6);
      }
    }
}

TEST(BatchNorm, GradientsAreTheComplexStep) {
  const int64_t rows = 6, D = 4;
  Normed r({rows, D}, DType::f32, true);
  r.back();
  const auto weighed = [&](const ComplexValues& x, const ComplexValues& w, const ComplexValues& b) {
    ComplexValues mean, var;
    return dot(batch_norm_reference<Complex>(D, kEps, x, w, b, mean, var), r.cotangent);
  };
  const ComplexValues x = to_complex(to_double(r.x)), w = to_complex(to_double(r.w)),
                      b = to_complex(to_double(r.b));
  const auto check = [&](const Tensor& t, const std::function<Complex(const ComplexValues&)>& f,
                         const char* name) {
    expect_relative(to_double(r.t.tape.grad(t)), complex_step_gradient(f, to_double(t)),
                    16 * rounding(DType::f32), name);
  };
  check(
      r.x, [&](const ComplexValues& v) { return weighed(v, w, b); }, "dx");
  check(
      r.w, [&](const ComplexValues& v) { return weighed(x, v, b); }, "dw");
  check(
      r.b, [&](const ComplexValues& v) { return weighed(x, w, v); }, "db");
}

TEST(BatchNorm, OtherwiseByWhatWasSeen) {
  const Shape shape{3, 50, 33};
  Normed r(shape, DType::f32, false);
  const Values mean = to_double(r.mean), var = to_double(r.var), x = to_double(r.x),
               w = to_double(r.w), b = to_double(r.b);
  Values y, dx, dw(33, 0.0), db(33, 0.0);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t d = i % 33;
    const double scale = 1 / std::sqrt(var[d] + static_cast<double>(kEps)),
                 value = (x[i] - mean[d]) * scale;
    y.push_back(value * w[d] + b[d]);
    dx.push_back(r.cotangent[i] * w[d] * scale);
    dw[d] += r.cotangent[i] * value;
    db[d] += r.cotangent[i];
  }
  expect_relative(to_double(r.y), y, 6 * rounding(DType::f32), "y");
  r.back();
  expect_relative(to_double(r.t.tape.grad(r.x)), dx, 6 * rounding(DType::f32), "dx");
  expect_relative(to_double(r.t.tape.grad(r.w)), dw, 6 * rounding(DType::f32), "dw");
  expect_relative(to_double(r.t.tape.grad(r.b)), db, 6 * rounding(DType::f32), "db");
  EXPECT_EQ(to_double(r.mean), mean);
  EXPECT_EQ(to_double(r.var), var);
}

TEST(BatchNorm, BitsDoNotDependOnTheNumberOfThreads) {
  const auto run = [](int n) {
    const ThreadCount count(n);
    Normed r({9000, 3}, DType::f32, true);
    r.back();
    Values all = to_double(r.y);
    for (const Tensor& t : {r.t.tape.grad(r.x), r.t.tape.grad(r.w), r.mean, r.var})
      for (const double v : to_double(t)) all.push_back(v);
    return all;
  };
  expect_same_bits(run(1), run(4), "4 threads");
}

TEST(BatchNorm, OneRowIsRefusedInTraining) {
  EXPECT_THROW(Normed({1, 4}, DType::f32, true), Error);
  EXPECT_NO_THROW(Normed({1, 4}, DType::f32, false));
}

}  // namespace
}  // namespace krait::ops
