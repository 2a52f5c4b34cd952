#include "krait/ops/pool/pool.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr int64_t kRows = 2, kLength = 7, kWidth = 5;

// Begins of the sequences of the 14 tokens: the rows, or four of lengths 1, 6, 5, 2.
const std::vector<std::vector<int64_t>> kCuts = {{0, 7, 14}, {0, 1, 7, 12, 14}};

struct Cut {
  std::vector<int32_t> none;
  Packing packing;

  Cut(TestContext& t, const std::vector<int64_t>& begin) : none(begin.size() - 1, -1) {
    packing.n = static_cast<int64_t>(none.size());
    packing.longest = kLength;
    packing.begin = t.tensor({packing.n + 1}, DType::i64);
    for (size_t i = 0; i < begin.size(); ++i) packing.begin.as<int64_t>()[i] = begin[i];
    packing.state_in = packing.state_out = Tensor(none.data(), DType::i32, {packing.n});
  }
};

// y[s] = Σ_t weight(s, t) x[t]
void check_pool(const std::vector<int64_t>& begin, bool mean, DType dtype) {
  TestContext t(true);
  const Tensor x = t.random({kRows, kLength, kWidth}, dtype, 1);
  const Cut cut(t, begin);
  const Packing* const packing = begin.size() == 3 ? nullptr : &cut.packing;
  const Tensor y = mean ? pool_mean(t.c, x, packing) : pool_last(t.c, x, packing);
  const auto S = static_cast<int64_t>(begin.size()) - 1;
  ASSERT_EQ(y.shape, (Shape{S, kWidth}));
  const Values dy = random_values(S * kWidth, 3);
  Values expected(static_cast<size_t>(S * kWidth), 0.0), dx(static_cast<size_t>(x.numel()), 0.0);
  for (size_t s = 0; s < static_cast<size_t>(S); ++s)
    for (int64_t tok = begin[s]; tok < begin[s + 1]; ++tok)
      for (size_t d = 0; d < kWidth; ++d) {
        const double weight = mean ? 1 / static_cast<double>(begin[s + 1] - begin[s])
                                   : static_cast<double>(tok + 1 == begin[s + 1]);
        const size_t i = static_cast<size_t>(tok) * kWidth + d;
        expected[s * kWidth + d] += weight * get(x, static_cast<int64_t>(i));
        dx[i] = weight * dy[s * kWidth + d];
      }
  expect_relative(to_double(y), expected, rounding(dtype) + 4 * rounding(DType::f32), "y");
  t.seed_grad(y, dy);
  t.tape.backward(t.c);
  expect_relative(to_double(t.tape.grad(x)), dx, 3 * rounding(dtype), "dx");
}

TEST(Pool, LastAndMeanOfRowsAndOfPackedSequences) {
  for (const auto& begin : kCuts)
    for (const bool mean : {false, true})
      for (const DType dtype : {DType::f32, DType::bf16}) check_pool(begin, mean, dtype);
}

TEST(PutLast, ReplacesTheLastTokenOfEachSequence) {
  for (const auto& begin : kCuts) {
    TestContext t(true);
    const Tensor x = t.random({kRows, kLength, kWidth}, DType::f32, 1),
                 token = t.random({kWidth}, DType::f32, 2);
    const Cut cut(t, begin);
    const Tensor y = put_last(t.c, x, token, begin.size() == 3 ? nullptr : &cut.packing);
    const Values dy = random_values(x.numel(), 3);
    Values expected = to_double(x), dx = dy, dtoken(kWidth, 0.0);
    for (size_t s = 1; s < begin.size(); ++s)
      for (size_t d = 0; d < kWidth; ++d) {
        const size_t i = static_cast<size_t>(begin[s] - 1) * kWidth + d;
        expected[i] = get(token, static_cast<int64_t>(d));
        dtoken[d] += dy[i];
        dx[i] = 0;
      }
    EXPECT_EQ(to_double(y), expected);
    t.seed_grad(y, dy);
    t.tape.backward(t.c);
    expect_relative(to_double(t.tape.grad(x)), dx, rounding(DType::f32), "dx");
    expect_relative(to_double(t.tape.grad(token)), dtoken, 8 * rounding(DType::f32), "dtoken");
  }
}

TEST(Pool, ASequenceWithoutTokensIsNotPassedOver) {
  TestContext t;
  const Tensor x = t.random({kRows, kLength, kWidth}, DType::f32, 1);
  const Cut cut(t, {0, 7, 7, 14});
  for (const auto pool : {&pool_last, &pool_mean}) {
    if (test_device().type == Device::cpu) {
      EXPECT_THROW((*pool)(t.c, x, &cut.packing), Error);
      continue;
    }
    const Values y = to_double((*pool)(t.c, x, &cut.packing));
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / kWidth == 1) << i;
  }
}

}  // namespace
}  // namespace krait::ops
