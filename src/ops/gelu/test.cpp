#include "krait/ops/gelu/gelu.h"
#include "krait/ops/gelu/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

void expect_matches_reference(int64_t n, DType dtype, double scale) {
  TestContext test(true);
  const Tensor x = test.random({n}, dtype, 1, {.scale = scale});
  const Tensor y = gelu(test.c, x);
  expect_within_twice_plain(to_double(y), gelu_reference(to_double(x)),
                            to_double(gelu_reference(to_float(x))), dtype, "y");
  Values cotangent = random_values(n, 2);
  for (double& g : cotangent) g = static_cast<float>(g);
  if (dtype == DType::bf16)
    for (double& g : cotangent) g = static_cast<float>(bf16(static_cast<float>(g)));
  test.seed_grad(y, cotangent);
  test.tape.backward(test.c);
  Values exact = gelu_slope_reference(to_double(x));
  Values plain = to_double(gelu_slope_reference(to_float(x)));
  for (size_t i = 0; i < exact.size(); ++i) {
    exact[i] *= cotangent[i];
    plain[i] = static_cast<float>(plain[i]) * static_cast<float>(cotangent[i]);
  }
  expect_within_twice_plain(to_double(test.tape.grad(x)), exact, plain, dtype, "dx");
}

TEST(Gelu, MatchesDouble) {
  KRAIT_ONLY_ON_CPU("gelu has no CUDA kernel");
  for (int64_t n : {1, 7, 97, 20000})
    for (double scale : {0.1, 1.0, 4.0}) {
      expect_matches_reference(n, DType::f32, scale);
      expect_matches_reference(n, DType::bf16, scale);
    }
}

TEST(Gelu, FarOutIsIdentityOrZero) {
  KRAIT_ONLY_ON_CPU("gelu has no CUDA kernel");
  TestContext test;
  const Tensor x = test.from({-1e30, -50, 50, 1e30, std::nan("")}, {5}, DType::f32);
  const Values y = to_double(gelu(test.c, x));
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], 0);
  EXPECT_EQ(y[2], 50);
  EXPECT_EQ(y[3], get(x, 3));
  EXPECT_TRUE(std::isnan(y[4]));
}

}  // namespace
}  // namespace krait::ops
