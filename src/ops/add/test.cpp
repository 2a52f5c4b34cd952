#include "krait/ops/add/add.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Add, IsRoundedOnceAndGivesBothTheirGradient) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const float factor : {1.0f, 0.5f}) {
      TestContext t(true);
      const Tensor a = t.random({3, 5, 7}, dtype, 1), b = t.random({3, 5, 7}, dtype, 2);
      const Tensor y = add(t.c, a, b, factor);
      for (int64_t i = 0; i < y.numel(); ++i)
        EXPECT_NEAR(get(y, i), (get(a, i) + get(b, i)) * factor, rounding(dtype) * 4);
      t.seed_grad(y, Values(105, 3.0));
      t.tape.backward(t.c);
      for (const Tensor& x : {a, b})
        EXPECT_EQ(to_double(t.tape.grad(x)), Values(105, 3.0 * static_cast<double>(factor)));
    }
  }
}

TEST(Add, OfATensorWithItselfHasItsWholeGradient) {
  TestContext t(true);
  const Tensor a = t.random({8}, DType::f32, 1);
  const Tensor y = add(t.c, a, a, 0.5f);
  EXPECT_EQ(to_double(y), to_double(a));
  t.seed_grad(y, Values(8, 3.0));
  t.tape.backward(t.c);
  EXPECT_EQ(to_double(t.tape.grad(a)), Values(8, 3.0));
}

}  // namespace
}  // namespace krait::ops
