#include "krait/ops/squared_error/squared_error.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(SquaredError, LossAndGradient) {
  TestContext t(true);
  const Tensor y = t.random({5, 3}, DType::f32, 1, {.scale = 3});
  const Tensor targets = t.random({5, 3}, DType::f32, 2, {.watched = false});
  const CrossEntropyResult r = squared_error(t.c, y, targets, 0.25f);
  double loss = 0;
  Values gradient, each;
  for (int64_t i = 0; i < 15; ++i) {
    const double off = get(y, i) - get(targets, i);
    loss += 0.25 * off * off;
    each.push_back(off * off);
    gradient.push_back(0.5 * off);
  }
  EXPECT_NEAR(get(r.loss, 0), loss, 2e-7 * loss);
  expect_relative(to_double(r.nll), each, 4 * rounding(DType::f32), "e");
  expect_relative(to_double(t.tape.grad(y)), gradient, 4 * rounding(DType::f32), "dy");
  EXPECT_THROW(squared_error(t.c, y, targets.reshape({15}), 1.0f), Error);
}

}  // namespace
}  // namespace krait::ops
