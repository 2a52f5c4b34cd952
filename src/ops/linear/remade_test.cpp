// A product of what its op writes again in backward (Tape::watch_remade), as Mamba-1's out_proj has it.
#include <algorithm>
#include <cmath>
#include <optional>

#include "krait/autograd/segment.h"
#include "krait/ops/linear/linear.h"
#include "krait/tensor/memory.h"
#include "krait/testing/op_test.h"

namespace krait::testing {
namespace {

constexpr int64_t M = 48, N = 24, K = 40;

// y = x, kept for backward, or NaN until backward has written it again.
Tensor same(Context& c, const Tensor& x, bool remake) {
  const Kept kept(c);
  Tensor y = c.alloc(x.shape, x.dtype, !remake);
  if (remake) std::fill_n(y.as<float>(), y.numel(), NAN);  // also where nothing is to be computed
  copy(c, x, y);
  remake ? c.tape->watch_remade(y) : c.tape->watch(y);
  c.tape->record([=](Context& b) {
    copy(b, b.tape->grad(y), b.tape->grad_into(b, x).grad);
    if (!remake) return;
    copy(b, x, y);
    b.tape->remade(b, y);
  });
  return y;
}

// stream + x Wᵀ + b as a layer, and its gradients.
struct Layer {
  TestContext
      t;  // of the inputs alone: a layer gives memory back, which it would take for overruns
  Arena arena{DeviceMemory::shared_with(test_device(), 1 << 20)};
  Tape tape;
  Tensors inputs = {t.random({M, K}, DType::f32, 1), t.random({N, K}, DType::f32, 2),
                    t.random({N}, DType::f32, 3), t.random({M, N}, DType::f32, 4)};
  size_t kept = 0;  // bytes
  Values y;
  std::vector<Values> gradients;

  Layer(bool remake, bool onto_stream, std::optional<Recompute> in_segment) {
    Context c = t.c;
    c.arena = &arena;
    c.tape = &tape;
    for (Tensor& in : inputs) tape.watch(in);
    const Tensor x = inputs[0], w = inputs[1], bias = inputs[2], stream = inputs[3];
    const auto body = [=](Context& b) -> Tensors {
      const Tensor again = same(b, x, remake);
      if (onto_stream) return {ops::linear_add(b, again, w, bias, stream)};
      return {ops::linear(b, again, w, bias, DType::f32)};
    };
    const Tensor end =
        in_segment ? segment(c, inputs, body, {.recompute = *in_segment})[0] : body(c)[0];
    kept = arena.low();
    y = to_double(end);
    const GradTarget dy = tape.grad_into(c, end);
    const Values cotangent = random_values(M * N, 5);
    for (int64_t i = 0; i < M * N; ++i) set(dy.grad, i, cotangent[static_cast<size_t>(i)]);
    tape.backward(c);
    for (const Tensor& in : inputs) gradients.push_back(to_double(tape.grad(in)));
  }
};

TEST(LinearRemade, GradientsWaitForTheInput) {
  const std::optional<Recompute> ways[] = {{}, Recompute::none, Recompute::cheap, Recompute::layer};
  for (const bool onto_stream : {true, false}) {
    const Layer plain(false, onto_stream, {});
    EXPECT_GT(max_abs(plain.gradients[1]), 0);
    for (const auto& way : ways) {
      const Layer again(true, onto_stream, way);
      for (size_t i = 0; i < plain.gradients.size(); ++i)
        expect_same_bits(
            again.gradients[i], plain.gradients[i],
            fmt::format("gradient {}, segment {}", i, way ? static_cast<int>(*way) : -1));
    }
  }
}

TEST(LinearRemade, ALayerDoesNotKeepTheInput) {
  constexpr size_t bytes = M * K * sizeof(float);
  static_assert(bytes % Arena::kAlign == 0);
  for (const Recompute r : {Recompute::none, Recompute::cheap})
    EXPECT_EQ(Layer(false, true, r).kept - Layer(true, true, r).kept, bytes);
}

}  // namespace
}  // namespace krait::testing
