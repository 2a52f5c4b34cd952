#include "krait/ops/patches/patches.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Patches, AreTheSquaresRowByRow) {
  for (const auto& [size, stride] : {std::pair{4, 4}, {4, 2}, {3, 5}, {1, 1}}) {
    const int64_t B = 2, C = 3, H = 9, W = 12, p = size, s = stride;
    TestContext t;
    const Tensor images = t.random({B, C, H, W}, DType::f32, 1);
    const Tensor y = patches(t.c, images, p, s);
    const int64_t rows = (H - p) / s + 1, columns = (W - p) / s + 1;
    ASSERT_EQ(y.shape, (Shape{B, rows * columns, C * p * p}));
    int64_t at = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < columns; ++k)
          for (int64_t c = 0; c < C; ++c)
            for (int64_t i = 0; i < p; ++i)
              for (int64_t j = 0; j < p; ++j)
                ASSERT_EQ(get(y, at++), get(images, ((b * C + c) * H + r * s + i) * W + k * s + j));
  }
  TestContext t;
  EXPECT_THROW(patches(t.c, t.random({1, 3, 8, 8}, DType::f32, 1), 9, 1), Error);
}

}  // namespace
}  // namespace krait::ops
