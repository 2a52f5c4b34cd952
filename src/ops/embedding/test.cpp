#include "krait/ops/embedding/embedding.h"

#include "krait/ops/embedding/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

std::vector<int32_t> random_tokens(int64_t n, int64_t V) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    // Every other token is one of three: long chains of additions into one row.
    const uint32_t word = Philox{3, 4}.words(static_cast<uint64_t>(i))[0];
    ids.push_back(
        static_cast<int32_t>(word % static_cast<uint32_t>(i % 2 ? V : std::min<int64_t>(V, 3))));
  }
  return ids;
}

Tensor tokens_in(TestContext& test, const std::vector<int32_t>& ids, const Shape& shape) {
  const Tensor t = test.tensor(shape, DType::i32);
  for (size_t i = 0; i < ids.size(); ++i) set(t, static_cast<int64_t>(i), ids[i]);
  return t;
}

struct Result {
  Values y, dw;
};

// dw starts from `before` where that is not empty.
Result run(int64_t n, int64_t V, int64_t D, DType dtype, const Values& before = {}) {
  TestContext test(true);
  Tensor w = test.random({V, D}, dtype, 1);
  w.var->grad_dtype = DType::f32;  // as for every parameter
  const Tensor tokens = tokens_in(test, random_tokens(n, V), {1, n});
  const Tensor y = embedding(test.c, tokens, w);
  EXPECT_EQ(y.shape, (Shape{1, n, D}));
  EXPECT_EQ(y.dtype, DType::f32);
  expect_same_bits(to_double(y), embedding_reference<double>(D, random_tokens(n, V), to_double(w)),
                   "y");
  if (!before.empty()) test.seed_grad(w, before);
  test.seed_grad(y, random_values(n * D, 11));
  test.tape.backward(test.c);
  return {to_double(y), to_double(test.tape.grad(w))};
}

void expect_gradient(int64_t n, int64_t V, int64_t D, DType dtype, const Values& before) {
  SCOPED_TRACE(fmt::format("n={} V={} D={} {}", n, V, D, name_of(dtype)));
  const std::vector<int32_t> ids = random_tokens(n, V);
  const Values dy = random_values(n * D, 11);
  std::vector<float> plain_dy(dy.begin(), dy.end());
  const Values rounded_dy = to_double(plain_dy);
  std::vector<float> plain(static_cast<size_t>(V * D), 0.0f);
  for (size_t i = 0; i < before.size(); ++i) plain[i] = static_cast<float>(before[i]);
  Values exact = to_double(plain);
  embedding_gradient_reference<double>(D, ids, rounded_dy, exact);
  embedding_gradient_reference<float>(D, ids, plain_dy, plain);
  expect_within_twice_plain(run(n, V, D, dtype, before).dw, exact, to_double(plain), DType::f32,
                            "dw");
}

TEST(Embedding, ForwardAndGradientAtEverySize) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t D : {1, 2, 31, 97, 257})
      for (int64_t n : {1, 2, 31, 257}) expect_gradient(n, 40, D, dtype, {});
  expect_gradient(1025, 7, 1025, DType::f32, {});
  expect_gradient(0, 7, 5, DType::f32, {});
}

// A tied head has written its part first: that is added to, not cleared.
TEST(Embedding, AddsToTheGradientThatIsThere) {
  expect_gradient(50, 10, 33, DType::bf16, random_values(10 * 33, 5));
}

TEST(Embedding, SameBitsForAnyNumberOfThreadsAndTwice) {
  const Result first = run(500, 20, 700, DType::f32);
  for (int n : {1, 2, 4}) {
    const ThreadCount scope(n);
    const Result again = run(500, 20, 700, DType::f32);
    expect_same_bits(again.y, first.y, "y");
    expect_same_bits(again.dw, first.dw, "dw");
  }
}

TEST(Embedding, T15_RowsBeyond31Bits) {
  KRAIT_ONLY_ON_CPU("reads memory that was never touched");
  constexpr int64_t V = 600'000, D = 1024;  // the last row begins 2.4 GB in
  Arena huge(V * D * sizeof(float));
  const Tensor w(huge.take_low(V * D * sizeof(float)), DType::f32, {V, D});
  set(w, (V - 1) * D + 3, 7.5);
  TestContext test;
  EXPECT_EQ(get(embedding(test.c, tokens_in(test, {static_cast<int32_t>(V - 1)}, {1}), w), 3), 7.5);
}

TEST(Embedding, ErrorsSayWhatWasExpected) {
  TestContext test;
  const Tensor w = test.random({4, 5}, DType::f32, 1);
  EXPECT_EQ(error_of([&] { embedding(test.c, test.tensor({3}, DType::i64), w); }),
            "[embedding] tokens: expected contiguous int32 (...), got int64 (3,)");
  EXPECT_EQ(error_of([&] { embedding(test.c, test.tensor({3}, DType::i32), w.slice(1, 0, 3)); }),
            "[embedding] w: expected contiguous float32 or bfloat16 (V, D), got float32 (4, 3)");
}

}  // namespace
}  // namespace krait::ops
