#include "krait/ops/average/average.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Average, IsExactAndHalvesGradients) {
  KRAIT_ONLY_ON_CPU("average has no CUDA kernel");
  for (const DType dtype : {DType::f32, DType::bf16}) {
    TestContext t(true);
    const Tensor a = t.random({3, 5, 7}, dtype, 1), b = t.random({3, 5, 7}, dtype, 2);
    const Tensor y = average(t.c, a, b);
    for (int64_t i = 0; i < y.numel(); ++i)
      EXPECT_NEAR(get(y, i), (get(a, i) + get(b, i)) / 2, rounding(dtype) * 4);
    t.seed_grad(y, Values(105, 3.0));
    t.tape.backward(t.c);
    for (const Tensor& x : {a, b}) EXPECT_EQ(to_double(t.tape.grad(x)), Values(105, 1.5));
  }
}

TEST(Average, OfATensorWithItselfHasItsWholeGradient) {
  KRAIT_ONLY_ON_CPU("average has no CUDA kernel");
  TestContext t(true);
  const Tensor a = t.random({8}, DType::f32, 1);
  const Tensor y = average(t.c, a, a);
  EXPECT_EQ(to_double(y), to_double(a));
  t.seed_grad(y, Values(8, 3.0));
  t.tape.backward(t.c);
  EXPECT_EQ(to_double(t.tape.grad(a)), Values(8, 3.0));
}

}  // namespace
}  // namespace krait::ops
