// gate against the double reference: values, and gradients by the complex step.
#include "krait/ops/gate/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr Gate kKinds[] = {Gate::silu,      Gate::sigmoid, Gate::gelu,
                           Gate::gelu_tanh, Gate::relu,    Gate::relu2};

struct Outcome {
  Values g, u, y, dy, dg, du;
};

Outcome run(Gate kind, int64_t rows, int64_t F, DType dtype, bool with_u, bool halves) {
  TestContext test(true);
  const Tensor both = test.random({rows, 2 * F}, dtype, 1, {0, 3});
  const Tensor g = halves ? both.slice(1, F, 2 * F) : test.random({rows, F}, dtype, 2, {0, 3});
  const Tensor u = !with_u  ? Tensor()
                   : halves ? both.slice(1, 0, F)
                            : test.random({rows, F}, dtype, 3);
  const Tensor y = gate(test.c, kind, g, u);
  Outcome o{to_double(g), to_double(u), to_double(y), {}, {}, {}};
  test.seed_grad(y, random_values(y.numel(), 11));
  o.dy = to_double(test.tape.grad(y));
  test.tape.backward(test.c);
  o.dg = to_double(test.tape.grad(g));
  o.du = to_double(u ? test.tape.grad(u) : Tensor());
  return o;
}

template <class T>
T slope(Gate kind, double g) {
  constexpr double h = 1e-100;
  return static_cast<T>(gate_reference(kind, Complex(g, h)).imag() / h);
}

// Twice the error of a plain float32 run, and two roundings to the result's type.
void expect_close(const Values& got, const Values& exact, const Values& plain, DType dtype,
                  const char* what) {
  const double bound =
      2 * max_abs_error(plain, exact) + 4 * rounding(dtype) * std::max(1.0, max_abs(exact));
  EXPECT_LE(max_abs_error(got, exact), bound) << what << ", largest " << max_abs(exact);
}

TEST(Gate, MatchesReferenceWithGradients) {
  for (Gate kind : kKinds)
    for (DType dtype : {DType::f32, DType::bf16})
      for (int64_t F : {0, 1, 2, 31, 97, 1025})
        for (bool with_u : {false, true})
          for (bool halves : {false, true}) {
            SCOPED_TRACE(fmt::format("kind {} F={} {} u={} halves={}", static_cast<int>(kind), F,
                                     name_of(dtype), with_u, halves));
            const Outcome o = run(kind, 9, F, dtype, with_u, halves);
            Values y, y_plain, dg, dg_plain, du, du_plain;
            for (size_t i = 0; i < o.g.size(); ++i) {
              const double u = with_u ? o.u[i] : 1;
              const auto gf = static_cast<float>(o.g[i]);
              y.push_back(gate_reference(kind, o.g[i]) * u);
              y_plain.push_back(static_cast<double>(gate_reference(kind, gf)) * u);
              dg.push_back(slope<double>(kind, o.g[i]) * u * o.dy[i]);
              dg_plain.push_back(static_cast<double>(slope<float>(kind, o.g[i])) * u * o.dy[i]);
              du.push_back(gate_reference(kind, o.g[i]) * o.dy[i]);
              du_plain.push_back(static_cast<double>(gate_reference(kind, gf)) * o.dy[i]);
            }
            expect_close(o.y, y, y_plain, dtype, "y");
            expect_close(o.dg, dg, dg_plain, dtype, "dg");
            if (with_u) expect_close(o.du, du, du_plain, dtype, "du");
          }
}

// Values and slopes near and far from zero, to the house bound.
TEST(Gate, GeluAndSigmoidWithinTwiceAPlainRun) {
  for (const Gate kind : {Gate::gelu, Gate::sigmoid})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int64_t n : {1, 7, 97, 20000})
        for (const double scale : {0.1, 1.0, 4.0}) {
          SCOPED_TRACE(fmt::format("kind {} n={} {} scale={}", static_cast<int>(kind), n,
                                   name_of(dtype), scale));
          TestContext test(true);
          const Tensor g = test.random({n}, dtype, 1, {.scale = scale});
          const Tensor y = gate(test.c, kind, g);
          test.seed_grad(y, random_values(n, 2));
          const Values at = to_double(g), dy = to_double(test.tape.grad(y));
          test.tape.backward(test.c);
          Values value, value_plain, dg, dg_plain;
          for (size_t i = 0; i < at.size(); ++i) {
            value.push_back(gate_reference(kind, at[i]));
            value_plain.push_back(gate_reference(kind, static_cast<float>(at[i])));
            dg.push_back(slope<double>(kind, at[i]) * dy[i]);
            dg_plain.push_back(slope<float>(kind, at[i]) * static_cast<float>(dy[i]));
          }
          expect_within_twice_plain(to_double(y), value, value_plain, dtype, "y");
          expect_within_twice_plain(to_double(test.tape.grad(g)), dg, dg_plain, dtype, "dg");
        }
}

// a σ(b) of the halves of one tensor, b the second (GLU).
template <class T>
std::vector<T> glu_reference(int64_t H, const std::vector<T>& x) {
  std::vector<T> y;
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(2 * H))
    for (size_t i = row; i < row + static_cast<size_t>(H); ++i)
      y.push_back(x[i] * gate_reference(Gate::sigmoid, x[i + static_cast<size_t>(H)]));
  return y;
}

TEST(Gate, GluOfTheHalvesOfOneTensorAndItsGradient) {
  for (const int64_t H : {1, 5, 33})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(H);
      TestContext test(true);
      const Tensor x = test.random({2, 9, 2 * H}, dtype, 1, {.scale = 2});
      const Tensor y = gate(test.c, Gate::sigmoid, x.slice(-1, H, 2 * H), x.slice(-1, 0, H));
      expect_within_twice_plain(to_double(y), glu_reference(H, to_double(x)),
                                to_double(glu_reference(H, to_float(x))), dtype, "y");
      const Values cotangent(static_cast<size_t>(y.numel()), 0.5);
      test.seed_grad(y, cotangent);
      test.tape.backward(test.c);
      const Values exact = complex_step_gradient(
          [&](const ComplexValues& v) { return dot(glu_reference(H, v), cotangent); },
          to_double(x));
      EXPECT_LE(max_abs_error(to_double(test.tape.grad(x)), exact),
                4 * rounding(dtype) * max_abs(exact));
    }
}

TEST(Gate, GeluFarOutIsIdentityOrZero) {
  TestContext test;
  const Tensor x = test.from({-1e30, -50, 50, 1e30, std::nan("")}, {5}, DType::f32);
  const Values y = to_double(gate(test.c, Gate::gelu, x));
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], 0);
  EXPECT_EQ(y[2], 50);
  EXPECT_EQ(y[3], get(x, 3));
  EXPECT_TRUE(std::isnan(y[4]));
}

// Far from zero, where the tails are of another size than the rest: relative to each value.
TEST(Gate, TailsOfGeluAreRelativelyExact) {
  TestContext test;
  Values at;
  for (double x = -12; x <= 12; x += 0.01) at.push_back(static_cast<double>(static_cast<float>(x)));
  const auto n = static_cast<int64_t>(at.size());
  const Tensor y = gate(test.c, Gate::gelu, test.from(at, {1, n}, DType::f32));
  for (int64_t i = 0; i < n; ++i) {
    const double x = at[static_cast<size_t>(i)], exact = gate_reference(Gate::gelu, x);
    // The square of x, rounded, is in the exponent.
    EXPECT_NEAR(get(y, i), exact, std::abs(exact) * (6e-7 + 0x1p-24 * x * x)) << x;
  }
}

TEST(Gate, SameBitsForAnyNumberOfThreads) {
  Outcome first;
  for (int n : {1, 2, 4}) {
    const ThreadCount scope(n);
    const Outcome o = run(Gate::silu, 40, 1025, DType::f32, true, true);
    if (first.y.empty()) first = o;
    expect_same_bits(o.y, first.y, "y");
    expect_same_bits(o.dg, first.dg, "dg");
    expect_same_bits(o.du, first.du, "du");
  }
}

TEST(Gate, ErrorsSayWhatWasExpected) {
  TestContext test;
  const Tensor g = test.random({2, 3}, DType::f32, 1), u = test.random({2, 4}, DType::f32, 2);
  expect_error([&] { gate(test.c, Gate::relu, g, u); }, "[gate] u: expected float32 (2, 3)");
}

}  // namespace
}  // namespace krait::ops
