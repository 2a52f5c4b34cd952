#include "krait/ops/concat/concat.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Concat, CopiesBothAndSplitsTheGradient) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const bool strided : {false, true})
      for (const bool add : {false, true}) {
        TestContext t(true);
        const Tensor a = t.random({2, 70, 5}, dtype, 1, {.strided = strided});
        const Tensor b = t.random({2, 70, 3}, dtype, 2, {.strided = strided});
        const Tensor y = concat(t.c, a, b);
        ASSERT_EQ(y.shape, (Shape{2, 70, 8}));
        const Values va = to_double(a), vb = to_double(b), vy = to_double(y);
        for (size_t i = 0; i < vy.size(); ++i)
          EXPECT_EQ(vy[i], i % 8 < 5 ? va[i / 8 * 5 + i % 8] : vb[i / 8 * 3 + i % 8 - 5]);
        if (add) {
          t.seed_grad(a, Values(va.size(), 1.0));
          t.seed_grad(b, Values(vb.size(), 1.0));
        }
        t.seed_grad(y, random_values(y.numel(), 3));
        const Values dy = to_double(t.tape.grad(y));
        t.tape.backward(t.c);
        const Values da = to_double(t.tape.grad(a)), db = to_double(t.tape.grad(b));
        for (size_t i = 0; i < dy.size(); ++i) {
          const double got = i % 8 < 5 ? da[i / 8 * 5 + i % 8] : db[i / 8 * 3 + i % 8 - 5];
          EXPECT_NEAR(got, dy[i] + (add ? 1 : 0), 2 * rounding(dtype) * (std::abs(dy[i]) + 1));
        }
      }
}

TEST(Concat, RefusesWhatDoesNotFit) {
  TestContext t;
  const Tensor a = t.random({2, 5}, DType::f32, 1);
  EXPECT_THROW(concat(t.c, a, t.random({3, 5}, DType::f32, 1)), Error);
  EXPECT_THROW(concat(t.c, a, t.random({2, 5}, DType::bf16, 1)), Error);
  EXPECT_THROW(concat(t.c, a, t.random({10}, DType::f32, 1)), Error);
}

}  // namespace
}  // namespace krait::ops
