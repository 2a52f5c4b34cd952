#include "krait/ops/class_token/class_token.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(ClassToken, StandsAtItsPlaceAndHearsFromThere) {
  for (const int64_t at : {0, 3, 6}) {
    const int64_t B = 2, M = 6, D = 5;
    TestContext t(true);
    const Tensor x = t.random({B, M, D}, DType::f32, 1), cls = t.random({1, 1, D}, DType::f32, 2),
                 positions = t.random({1, M + 1, D}, DType::f32, 3);
    const Tensor y = class_token(t.c, x, cls, positions, at);
    const Values cotangent = random_values(y.numel(), 4);
    t.seed_grad(y, cotangent);
    const Values dy = to_double(t.tape.grad(y));
    t.tape.backward(t.c);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = 0; k <= M; ++k)
        for (int64_t i = 0; i < D; ++i) {
          const int64_t from = (b * M + k - (k > at ? 1 : 0)) * D + i;
          const double token = k == at ? get(cls, i) : get(x, from);
          const auto here = static_cast<size_t>((b * (M + 1) + k) * D + i);
          EXPECT_EQ(get(y, static_cast<int64_t>(here)),
                    static_cast<float>(token) + static_cast<float>(get(positions, k * D + i)));
          if (k != at) {
            EXPECT_EQ(get(t.tape.grad(x), from), dy[here]);
          }
          const double both =
              dy[static_cast<size_t>(k * D + i)] + dy[static_cast<size_t>((M + 1 + k) * D + i)];
          EXPECT_NEAR(get(t.tape.grad(positions), k * D + i), both, 1e-6);
          if (k == at) {
            EXPECT_NEAR(get(t.tape.grad(cls), i), both, 1e-6);
          }
        }
  }
}

}  // namespace
}  // namespace krait::ops
