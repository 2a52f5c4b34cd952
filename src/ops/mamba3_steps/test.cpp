#include <gtest/gtest.h>

#include "krait/ops/mamba3_steps/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

namespace formula = mamba3_steps_reference;
using testing::Complex;
using testing::ComplexValues;
using testing::Values;

constexpr float kFloor = 0.3f;  // high, so that it cuts

// dt, then adt.
template <class T>
std::vector<T> steps(const std::vector<T>& raw_dt, const std::vector<T>& raw_A,
                     const std::vector<T>& bias, DecayKind kind) {
  const size_t n = raw_dt.size();
  std::vector<T> out(2 * n);
  for (size_t i = 0; i < n; ++i) {
    out[i] = formula::softplus(raw_dt[i] + bias[i % bias.size()]);
    out[n + i] = formula::decay_rate(raw_A[i], kFloor, kind) * out[i];
  }
  return out;
}

struct Outcome {
  Values values, grads[3];
};

class Mamba3StepsTest : public ::testing::TestWithParam<std::tuple<DecayKind, int64_t, bool>> {};

TEST_P(Mamba3StepsTest, ValuesAndGradients) {
  const auto [kind, L, strided] = GetParam();
  const int64_t B = 2, H = 5;
  Outcome one_thread;
  for (const int n : {1, 2, 4}) {
    const testing::ThreadCount count(n);
    testing::TestContext t(true);
    const Tensor raw_dt = t.random({B, L, H}, DType::f32, 1, {-1, 8, strided});
    const Tensor raw_A = t.random({B, L, H}, DType::f32, 2, {0, 3, strided});
    const Tensor bias = t.random({H}, DType::f32, 3);
    const Mamba3Steps r = mamba3_steps(t.c, raw_dt, raw_A, bias, kFloor, kind);
    Outcome got;
    got.values = testing::to_double(r.dt);
    for (const double v : testing::to_double(r.adt)) got.values.push_back(v);
    const Values cotangent = testing::random_values(2 * B * L * H, 4);
    const auto middle = cotangent.begin() + B * L * H;
    t.seed_grad(r.dt, Values(cotangent.begin(), middle));
    t.seed_grad(r.adt, Values(middle, cotangent.end()));
    t.tape.backward(t.c);
    const Tensor inputs[] = {raw_dt, raw_A, bias};
    for (size_t i = 0; i < 3; ++i) got.grads[i] = testing::to_double(t.tape.grad(inputs[i]));
    if (n > 1) {
      testing::expect_same_bits(got.values, one_thread.values, "values");
      for (size_t i = 0; i < 3; ++i)
        testing::expect_same_bits(got.grads[i], one_thread.grads[i], "gradients");
      continue;
    }
    one_thread = got;
    const Values x[] = {testing::to_double(raw_dt), testing::to_double(raw_A),
                        testing::to_double(bias)};
    std::vector<float> f[3];
    for (size_t i = 0; i < 3; ++i) f[i].assign(x[i].begin(), x[i].end());
    testing::expect_within_twice_plain(got.values, steps(x[0], x[1], x[2], kind),
                                       testing::to_double(steps(f[0], f[1], f[2], kind)),
                                       DType::f32, "dt, adt");
    for (size_t i = 0; i < 3; ++i) {
      const auto loss = [&, kind = kind](const ComplexValues& changed) {
        ComplexValues z[] = {testing::to_complex(x[0]), testing::to_complex(x[1]),
                             testing::to_complex(x[2])};
        z[i] = changed;
        return testing::dot(steps(z[0], z[1], z[2], kind), cotangent);
      };
      testing::expect_relative(got.grads[i], testing::complex_step_gradient(loss, x[i]), 1e-6,
                               "gradient");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Mamba3StepsTest,
                         ::testing::Combine(::testing::Values(DecayKind::heavy_tailed,
                                                              DecayKind::softplus),
                                            ::testing::Values(1, 7, 70), ::testing::Bool()));

}  // namespace
}  // namespace krait::ops
