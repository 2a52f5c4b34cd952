#include "krait/autograd/segment.h"
#include "krait/autograd/tape.h"
#include "krait/testing/op_test.h"

namespace krait {
namespace {

using namespace krait::testing;

TEST(Tape, RoundedGradientLastsUntilTheNextWriter) {
  TestContext t(true);
  const Tensor x = t.from({1, 2, 3, 4}, {2, 2}, DType::f32),
               half = t.from({1, 2}, {2}, DType::bf16);
  EXPECT_FALSE(t.tape.rounded_grad(x));
  t.tape.grad_into(t.c, x);
  EXPECT_FALSE(t.tape.rounded_grad(x)) << "nobody wrote it";
  const Tensor room = t.tape.round_into(t.c, x);
  EXPECT_EQ(room.dtype, DType::bf16);
  EXPECT_EQ(room.shape, x.shape);
  EXPECT_EQ(t.tape.rounded_grad(x).data, room.data);
  EXPECT_FALSE(t.tape.rounded_grad(x.select(0, 0))) << "a part is not the whole";
  t.tape.grad_into(t.c, x.select(0, 0));
  EXPECT_FALSE(t.tape.rounded_grad(x)) << "a part was written again";
  EXPECT_EQ(t.tape.round_into(t.c, x).data, room.data);
  t.tape.grad_into(t.c, half);
  EXPECT_FALSE(t.tape.round_into(t.c, half)) << "it is bfloat16 already";

  // It goes with a gradient that is handed on, from one segment to the next.
  const Tensor before = t.from({0, 0, 0, 0}, {4}, DType::f32);
  t.tape.share_grad(t.c, x, before);
  EXPECT_EQ(t.tape.rounded_grad(before).data, room.data);
}

// The room would be given back with the segment, while the slot outside lives on.
TEST(Tape, SegmentsMakeNoRoomForRoundedGradients) {
  TestContext t(true);
  const Tensor x = t.from({1, 2}, {2}, DType::f32);
  Tensor inside = x, asked = x;
  const auto body = [&](Context& c) -> Tensors {
    Tensor y = c.alloc(x.shape, DType::f32);
    if (!needs_grad({x})) return {y};
    c.tape->watch_sum(y, x);
    c.tape->record([&, y](Context& b) {
      b.tape->uncover(y);
      inside = b.tape->rounded_grad(y);
      b.tape->grad_into(b, x);
      asked = b.tape->round_into(b, x);
    });
    return {y};
  };
  const auto backward = [&](bool rounded) {
    const Tensor y = segment(t.c, {x}, body)[0];
    t.tape.grad_into(t.c, y);
    const Tensor room = rounded ? t.tape.round_into(t.c, y) : Tensor();
    t.tape.backward(t.c);
    EXPECT_EQ(inside.data, room.data);
    EXPECT_EQ(asked.data, room.data);
  };
  backward(false);
  x.var->written = false;
  x.var->grad = {};
  backward(true);
}

}  // namespace
}  // namespace krait
