#include "krait/ops/cross_entropy/cross_entropy.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

TEST(CrossEntropyOfLogits, LossAndGradient) {
  KRAIT_ONLY_ON_CPU("the cross-entropy of logits is the CPU's");
  const int64_t M = 5, V = 13;
  TestContext t(true);
  const Tensor logits = t.random({M, V}, DType::f32, 1, {.scale = 3});
  const Tensor targets = t.from({0, 12, -1, 4, 4}, {M}, DType::i32, false);
  const CrossEntropyResult r = cross_entropy(t.c, logits, targets, 0.25f);
  double loss = 0;
  Values gradient(static_cast<size_t>(M * V), 0.0);
  for (int64_t i = 0; i < M; ++i) {
    const auto target = static_cast<int64_t>(get(targets, i));
    if (target < 0) continue;
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(get(logits, i * V + v));
    loss += 0.25 * (std::log(sum) - get(logits, i * V + target));
    for (int64_t v = 0; v < V; ++v)
      gradient[static_cast<size_t>(i * V + v)] =
          0.25 * (std::exp(get(logits, i * V + v)) / sum - (v == target ? 1 : 0));
  }
  EXPECT_NEAR(get(r.loss, 0), loss, 1e-6 * loss);
  EXPECT_LE(max_abs_error(to_double(t.tape.grad(logits)), gradient), 1e-7);
  set(targets, 0, 13);
  EXPECT_THROW(cross_entropy(t.c, logits, targets, 1.0f), Error);
}

}  // namespace
}  // namespace krait::ops
