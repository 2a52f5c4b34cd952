#include "krait/ops/positions/positions.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(Positions, RowsCountOnFromTheState) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    TestContext t(true);
    constexpr int64_t B = 2, L = 5, D = 7, T = 12;
    const Tensor x = t.random({B, L, D}, DType::f32, 1), w = t.random({T, D}, dtype, 2),
                 in = t.from({0, 6}, {B, 1}, DType::f32, false), out = t.tensor({B, 1}, DType::f32);
    w.var->grad_dtype = DType::f32;
    const Tensor y = add_positions(t.c, x, w, nullptr, in, out);
    const Values dy =
        to_double(to_float(t.from(random_values(B * L * D, 3), {B * L * D}, DType::f32, false)));
    t.seed_grad(y, dy);
    t.tape.backward(t.c);
    Values expected, dw(T * D);
    for (int64_t i = 0; i < B * L * D; ++i) {
      const int64_t row = (i / (L * D) == 0 ? 0 : 6) + i / D % L;
      expected.push_back(static_cast<float>(get(x, i) + get(w, row * D + i % D)));
      dw[static_cast<size_t>(row * D + i % D)] += dy[static_cast<size_t>(i)];
    }
    expect_same_bits(to_double(y), expected, "y");
    EXPECT_EQ(to_double(out), (Values{5, 11}));
    expect_same_bits(to_double(t.tape.grad(x)), dy, "dx");
    expect_relative(to_double(t.tape.grad(w)), dw, 1e-7, "dw");
  }
}

TEST(Positions, T25_PackedSequencesStartAnew) {
  TestContext t;
  const Tensor x = t.from({0, 0, 0, 0}, {1, 4, 1}, DType::f32),
               w = t.from({1, 2, 3}, {3, 1}, DType::f32);
  const Tensor none = t.tensor({2}, DType::i32);  // -1
  const Packing p{2, 3, t.from({0, 3, 4}, {3}, DType::i64, false), none, none};
  EXPECT_EQ(to_double(add_positions(t.c, x, w, &p)), (Values{1, 2, 3, 1}));
}

TEST(Positions, ASequenceThatIsTooLongIsAnError) {
  TestContext t;
  const Tensor x = t.random({1, 4, 2}, DType::f32, 1), w = t.random({3, 2}, DType::f32, 2);
  EXPECT_EQ(error_of([&] { add_positions(t.c, x, w); }),
            "[positions] a sequence of 4 tokens is longer than the 3 positions of this model");
}

}  // namespace
}  // namespace krait::ops
