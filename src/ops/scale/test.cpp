#include "krait/ops/scale/scale.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Scale, EachStretchHasItsFactor) {
  const std::vector<Stretch> stretches = {{3, 0.5f}, {0, 9.0f}, {5, 1.0f}, {2, -3.0f}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool strided : {false, true}) {
      TestContext t(true);
      const Tensor x = t.random({2, 31, 10}, dtype, 1, {0, 1, strided, true});
      const Tensor y = scale(t.c, x, stretches);
      const Tensor dy = t.random({2, 31, 10}, dtype, 2, {0, 1, false, false});
      t.seed_grad(y, to_double(dy));
      t.tape.backward(t.c);
      const Values in = to_double(x), out = to_double(y), dx = to_double(t.tape.grad(x)),
                   d = to_double(dy);
      for (size_t i = 0; i < in.size(); ++i) {
        const size_t column = i % 10;
        const double factor = column < 3 ? 0.5 : column < 8 ? 1.0 : -3.0;
        EXPECT_NEAR(out[i], factor * in[i], rounding(dtype) * std::abs(factor * in[i])) << i;
        EXPECT_NEAR(dx[i], factor * d[i], rounding(dtype) * std::abs(factor * d[i])) << i;
      }
    }
  }
}

TEST(Scale, ByOneIsTheTensorItself) {
  TestContext t(true);
  const Tensor x = t.random({4, 6}, DType::f32, 1);
  EXPECT_EQ(scale(t.c, x, 1.0f).data, x.data);
  EXPECT_EQ(scale(t.c, x, {{2, 1}, {0, 5}, {4, 1}}).data, x.data);
  EXPECT_EQ(t.tape.size(), 0u);
}

TEST(Scale, GradientsOfTwoUsesAreSummed) {
  TestContext t(true);
  const Tensor x = t.random({8}, DType::f32, 1);
  const Tensor a = scale(t.c, x, 2.0f), b = scale(t.c, x, 0.25f);
  t.seed_grad(a, Values(8, 1.0));
  t.seed_grad(b, Values(8, 4.0));
  t.tape.backward(t.c);
  EXPECT_EQ(to_double(t.tape.grad(x)), Values(8, 3.0));
}

TEST(Scale, StretchesThatDoNotCoverTheColumnsAreAnError) {
  TestContext t;
  const Tensor x = t.random({4, 6}, DType::f32, 1);
  EXPECT_THROW(scale(t.c, x, {{5, 2.0f}}), Error);
  EXPECT_THROW(scale(t.c, x, {{7, 2.0f}}), Error);
}

}  // namespace
}  // namespace krait::ops
