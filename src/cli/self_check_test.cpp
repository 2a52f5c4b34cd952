#include <gtest/gtest.h>

#include "krait/cli/self_check_probe.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gate/reference.h"

namespace krait::cli {
namespace {

// The largest error over its bound that the probe sees when silu is taken for `kind`.
double worst_of(ops::Gate kind) {
  Probe probe(Device{}, DType::f32);
  const Tensor x = probe.values({3, 7});
  probe.check(
      {x}, [&](Context& c) { return ops::gate(c, ops::Gate::silu, x); },
      [&](const auto& in) {
        auto y = in[0];
        for (auto& v : y) v = ops::gate_reference(kind, v);
        return y;
      });
  return probe.worst();
}

TEST(SelfCheck, AcceptsWhatIsRightAndFindsWhatIsWrong) {
  EXPECT_LE(worst_of(ops::Gate::silu), 1);
  EXPECT_GT(worst_of(ops::Gate::gelu), 1000);
}

// A forward result may be right where the gradient is not: the probe must look at both.
TEST(SelfCheck, FindsAWrongGradient) {
  Probe probe(Device{}, DType::f32);
  const Tensor x = probe.values({3, 7});
  probe.check(
      {x}, [&](Context& c) { return ops::gate(c, ops::Gate::silu, x); },
      [&](const auto& in) {
        auto y = in[0];
        for (size_t i = 0; i < y.size(); ++i) {
          using T = std::decay_t<decltype(y[i])>;
          y[i] = ops::gate_reference(ops::Gate::silu, y[i]);
          if constexpr (!std::is_floating_point_v<T>) y[i] = {y[i].real(), y[i].imag() * 1.01};
        }
        return y;
      });
  EXPECT_GT(probe.worst(), 1);
  EXPECT_EQ(probe.where(), "gradient of input 1");
}

}  // namespace
}  // namespace krait::cli
