#include "krait/ops/dropout/dropout.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr uint64_t kSeed = 42, kStream = 7;

Values keep(int64_t n, float p, uint64_t stream = kStream) {
  Values mask;
  for (int64_t i = 0; i < n; ++i)
    mask.push_back(Philox{kSeed, stream}.uniform(static_cast<uint64_t>(i)) >= p ? 1.0 / (1.0 - p)
                                                                                : 0.0);
  return mask;
}

struct Drawn {
  Values x, stream, y, dx, dstream;
  uint64_t streams_drawn = 0;
};

Drawn run(int64_t n, float p, bool training, DType dtype) {
  TestContext test(true);
  test.c.training = training;
  test.c.rng = {kSeed, kStream};
  const Tensor x = test.random({1, n}, dtype, 1), stream = test.random({1, n}, DType::f32, 2);
  const Tensor y = dropout_add(test.c, x, stream, p);
  test.seed_grad(y, random_values(n, 11));
  test.tape.backward(test.c);
  return {to_double(x),
          to_double(stream),
          to_double(y),
          to_double(test.tape.grad(x)),
          to_double(test.tape.grad(stream)),
          test.c.rng.stream - kStream};
}

TEST(DropoutAdd, KeepsWhatPhiloxSays) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (float p : {0.1f, 0.5f, 0.9f}) {
      for (int64_t n : {0, 1, 2, 31, 97, 257, 1025, 40000}) {
        SCOPED_TRACE(fmt::format("n={} p={} {}", n, p, name_of(dtype)));
        const Drawn r = run(n, p, true, dtype);
        const Values mask = keep(n, p), dy = random_values(n, 11);
        Values y = r.stream, dx = dy;
        for (size_t i = 0; i < y.size(); ++i) {
          y[i] += r.x[i] * mask[i];
          dx[i] *= mask[i];
        }
        // The sum is rounded once or twice, the scale once.
        expect_relative(r.y, y, 4 * rounding(DType::f32), "y");
        expect_relative(r.dx, dx, rounding(dtype) + 3 * rounding(DType::f32), "dx");
        expect_relative(r.dstream, dy, rounding(DType::f32), "dstream");
        EXPECT_EQ(r.streams_drawn, 1u);
      }
    }
  }
}

TEST(DropoutAdd, PlainSumOutsideOfTrainingAndAtZero) {
  for (const auto& [p, training] : {std::pair{0.5f, false}, std::pair{0.0f, true}}) {
    const Drawn r = run(300, p, training, DType::f32);
    for (size_t i = 0; i < 300; ++i) {
      EXPECT_EQ(r.y[i], static_cast<float>(r.stream[i]) + static_cast<float>(r.x[i]));
      EXPECT_EQ(r.dx[i], r.dstream[i]);
    }
    EXPECT_EQ(r.streams_drawn, 0u);
  }
}

TEST(DropoutAdd, EachCallDrawsAnew) {
  TestContext test;
  test.c.training = true;
  test.c.rng = {kSeed, kStream};
  const Tensor x = test.from(Values(400, 1.0), {400}, DType::f32),
               zero = test.from(Values(400, 0.0), {400}, DType::f32);
  const Values first = to_double(dropout_add(test.c, x, zero, 0.5f)),
               second = to_double(dropout_add(test.c, x, zero, 0.5f));
  expect_relative(first, keep(400, 0.5f, kStream), 1e-7, "first");
  expect_relative(second, keep(400, 0.5f, kStream + 1), 1e-7, "second");
  EXPECT_NE(first, second);
}

TEST(DropoutAdd, KeepsTheRightShare) {
  const Values mask = run(40000, 0.25f, true, DType::f32).dx;
  const auto dropped = std::count(mask.begin(), mask.end(), 0.0);
  // Binomial: 10000 expected, one standard deviation is 87.
  EXPECT_NEAR(static_cast<double>(dropped), 10000, 5 * 87);
}

TEST(DropoutAdd, SameBitsForAnyNumberOfThreadsAndTwice) {
  const Drawn first = run(50000, 0.3f, true, DType::bf16);
  for (int n : {1, 2, 4}) {
    const ThreadCount scope(n);
    const Drawn again = run(50000, 0.3f, true, DType::bf16);
    expect_same_bits(again.y, first.y, "y");
    expect_same_bits(again.dx, first.dx, "dx");
  }
}

TEST(DropoutAdd, ErrorsSayWhatWasExpected) {
  TestContext test;
  const Tensor x = test.random({2, 5}, DType::f32, 1);
  const auto message = [&](const Tensor& stream, float p) {
    return error_of([&] { dropout_add(test.c, x, stream, p); });
  };
  EXPECT_EQ(message(test.tensor({2, 4}, DType::f32), 0.1f),
            "[dropout_add] stream: expected contiguous float32 (2, 5), got float32 (2, 4)");
  EXPECT_EQ(message(x, 1.0f), "[dropout_add] p: expected at least 0 and below 1, got 1");
}

}  // namespace
}  // namespace krait::ops
