#include "krait/ops/cross_entropy/cross_entropy.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

// Against the definition: -Σ_v q[v] log p[v], q the smoothed target.
void check(double smoothing) {
  const int64_t M = 5, V = 13;
  TestContext t(true);
  const Tensor logits = t.random({M, V}, DType::f32, 1, {.scale = 3});
  const Tensor targets = t.from({0, 12, -1, 4, 4}, {M}, DType::i32, false);
  const CrossEntropyResult r =
      cross_entropy(t.c, logits, targets, 0.25f, static_cast<float>(smoothing));
  double loss = 0;
  Values gradient(static_cast<size_t>(M * V), 0.0);
  for (int64_t i = 0; i < M; ++i) {
    const auto target = static_cast<int64_t>(get(targets, i));
    if (target < 0) continue;
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(get(logits, i * V + v));
    for (int64_t v = 0; v < V; ++v) {
      const double q = (v == target ? 1 - smoothing : 0) + smoothing / static_cast<double>(V);
      loss += 0.25 * q * (std::log(sum) - get(logits, i * V + v));
      gradient[static_cast<size_t>(i * V + v)] =
          0.25 * (std::exp(get(logits, i * V + v)) / sum - q);
    }
  }
  EXPECT_NEAR(get(r.loss, 0), loss, 1e-6 * loss);
  EXPECT_LE(max_abs_error(to_double(t.tape.grad(logits)), gradient), 1e-7);
  set(targets, 0, 13);
  if (test_device().type == Device::cpu) {
    EXPECT_THROW(cross_entropy(t.c, logits, targets, 1.0f), Error);
  } else {
    EXPECT_TRUE(std::isnan(get(cross_entropy(t.c, logits, targets, 1.0f).loss, 0)));
  }
}

TEST(CrossEntropyOfLogits, LossAndGradient) { check(0); }

TEST(CrossEntropyOfLogits, SmoothedTargets) { check(0.1); }

}  // namespace
}  // namespace krait::ops
