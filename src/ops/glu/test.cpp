#include "krait/ops/glu/glu.h"
#include "krait/ops/glu/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Glu, MatchesDoubleAndItsGradient) {
  KRAIT_ONLY_ON_CPU("glu has no CUDA kernel");
  for (int64_t H : {1, 5, 33})
    for (DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(H);
      TestContext test(true);
      const Tensor x = test.random({2, 9, 2 * H}, dtype, 1, {.scale = 2});
      const Tensor y = glu(test.c, x);
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

}  // namespace
}  // namespace krait::ops
