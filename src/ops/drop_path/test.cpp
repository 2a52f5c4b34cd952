#include "krait/ops/drop_path/drop_path.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr int64_t kRows = 40, kWidth = 7;

struct Drawn {
  Values x, stream, y, dx, dstream;
};

Drawn run(float p, bool training, DType dtype) {
  TestContext test(true);
  test.c.training = training;
  test.c.rng = {42, 7};
  const Tensor x = test.random({kRows, kWidth}, dtype, 1),
               stream = test.random({kRows, kWidth}, DType::f32, 2);
  const Tensor y = drop_path_add(test.c, x, stream, p);
  EXPECT_EQ(test.c.rng.stream, training && p > 0 ? 8u : 7u);
  test.seed_grad(y, random_values(kRows * kWidth, 11));
  test.tape.backward(test.c);
  return {to_double(x), to_double(stream), to_double(y), to_double(test.tape.grad(x)),
          to_double(test.tape.grad(stream))};
}

TEST(DropPathAdd, KeepsOrDropsWholeRows) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const float p = 0.3f;
    const Drawn r = run(p, true, dtype);
    const Values dy = random_values(kRows * kWidth, 11);
    Values y, dx;
    int64_t kept = 0;
    for (size_t i = 0; i < dy.size(); ++i) {
      const bool keep = Philox{42, 7}.uniform(i / kWidth) >= p;
      kept += keep;
      y.push_back(r.stream[i] + (keep ? r.x[i] / (1 - static_cast<double>(p)) : 0));
      dx.push_back(keep ? dy[i] / (1 - static_cast<double>(p)) : 0);
    }
    EXPECT_GT(kept, kWidth);  // some rows of each kind
    EXPECT_LT(kept, (kRows - 1) * kWidth);
    expect_relative(r.y, y, 4 * rounding(DType::f32), "y");
    expect_relative(r.dx, dx, rounding(dtype) + 4 * rounding(DType::f32), "dx");
    expect_relative(r.dstream, dy, rounding(DType::f32), "dstream");
  }
}

TEST(DropPathAdd, IsASumOutsideOfTrainingAndAtZero) {
  for (const bool training : {false, true}) {
    const Drawn r = run(training ? 0.0f : 0.5f, training, DType::f32);
    for (size_t i = 0; i < r.y.size(); ++i) {
      EXPECT_EQ(r.y[i], static_cast<float>(r.stream[i]) + static_cast<float>(r.x[i]));
      EXPECT_EQ(r.dx[i], r.dstream[i]);
    }
  }
}

}  // namespace
}  // namespace krait::ops
