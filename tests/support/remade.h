// Layers whose y backward writes again.
#pragma once
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/ops/linear/linear.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

// A layer: y = op(context, remake_y) of the `inputs`, then y projᵀ. The gradients of the inputs and of proj have the
// same bits whether y is kept, computed again in backward, or written again by the op (Tape::watch_remade).
template <class Op>
void expect_same_gradients_where_y_is_remade(const std::vector<Tensor*>& inputs, Tensor proj,
                                             const Op& op) {
  const auto gradients = [&](Recompute recompute, bool remake_y) {
    Arena arena(DeviceMemory::shared_with(test_device(), size_t{16} << 20));
    Tape tape;
    Context c;
    c.device = test_device();
    c.arena = &arena;
    c.tape = &tape;
    std::vector<Tensor> read;
    for (Tensor* const t : inputs) tape.watch(*t), read.push_back(*t);
    tape.watch(proj);
    read.push_back(proj);
    const auto layer = [&](Context& inner) {
      return Tensors{ops::linear(inner, op(inner, remake_y), proj, {}, DType::f32)};
    };
    tape.seed(c, segment(c, read, layer, {.recompute = recompute})[0], 0.5f);
    tape.backward(c);
    std::vector<Values> all;
    for (const Tensor& t : read) all.push_back(to_double(tape.grad(t)));
    return all;
  };
  const std::vector<Values> kept = gradients(Recompute::none, true),
                            again = gradients(Recompute::cheap, false),
                            remade = gradients(Recompute::cheap, true);
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_GT(max_abs(kept[i]), 0);
    expect_same_bits(kept[i], again[i], "computed again");
    expect_same_bits(kept[i], remade[i], "written again");
  }
}

}  // namespace krait::testing
