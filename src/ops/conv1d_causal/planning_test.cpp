#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

TEST(Conv1dCausal, PlanningTouchesNothingAndTakesTheSameMemory) {
  const auto run = [](Arena arena) {
    Tape tape;
    std::map<std::string, Cost> costs;
    Context c{.arena = &arena, .tape = &tape, .costs = &costs};
    Tensor x = c.alloc({2, 300, 40}, DType::bf16), k = c.alloc({40, 4}, DType::f32);
    if (!c.planning()) std::memset(x.data, 0, x.bytes());
    if (!c.planning()) std::memset(k.data, 0, k.bytes());
    tape.watch(x);
    tape.watch(k);
    const Tensor y = conv1d_causal(c, x, k, {}, true).y;
    tape.seed(c, y);
    tape.backward(c);
    EXPECT_EQ(costs["conv1d_causal"].bytes, 2.0 * 2 * 300 * 40 * 2);
    return arena.peak();
  };
  EXPECT_EQ(run(Arena::planning()), run(Arena(1 << 20)));
}

}  // namespace
}  // namespace krait::ops
