// S4 layers as a model: whole = chunked = stepped = packed, and the recurrence is the convolution.
#include <gtest/gtest.h>

#include "krait/models/language_model.h"
#include "krait/nn/hippo.h"
#include "krait/nn/s4.h"
#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait::models {
namespace {

using testing::Values;

class S4Models : public ::testing::TestWithParam<const char*> {
 protected:
  S4Models() : model(preset(GetParam())) {
    model.params().allocate(nn::Purpose::training, DType::f32);
    model.params().initialize(5);
    for (int64_t i = 0; i < 40; ++i) ids.push_back(static_cast<int32_t>((i * 37 + i * i) % 256));
  }
  // Logits of tokens [from, to), states moved on in place; without a state from zero by convolution.
  Values logits(int64_t from, int64_t to, nn::State* state) {
    Values result;
    const testing::PlannedRun once(model.params().device(), false, [&](Context& c) {
      Pass pass;
      pass.state_in = pass.state_out = state;
      const Tensor tokens(ids.data() + from, DType::i32, {1, to - from});
      const Tensor y = model.logits(c, model.hidden(c, tokens, pass));
      if (!c.planning()) result = testing::to_double(y);
    });
    return result;
  }
  LanguageModel model;
  std::vector<int32_t> ids;
};

TEST_P(S4Models, T19_WholeIsChunkedIsStepped) {
  const Values whole = logits(0, 40, nullptr);
  for (const int64_t chunk : {40, 16, 1}) {
    nn::State state = model.make_state(1);
    Values parts;
    for (int64_t t = 0; t < 40; t += chunk)
      for (const double v : logits(t, std::min<int64_t>(40, t + chunk), &state)) parts.push_back(v);
    double square = 0;
    for (const double v : whole) square += v * v;
    const double deviation = std::sqrt(square / static_cast<double>(whole.size()));
    EXPECT_LE(testing::max_abs_error(parts, whole), 1e-5 * deviation) << chunk;
  }
}

// The steps are made from the parameters as they are: changing one changes them.
TEST_P(S4Models, StepsFollowTheParameters) {
  nn::State state = model.make_state(1);
  const Values before = logits(0, 4, &state);
  nn::Param* C = model.params().find("backbone.layers.0.mixer.layer.kernel.C");
  ASSERT_NE(C, nullptr);
  set(C->value, 3, get(C->value, 3) + 1);
  nn::State again = model.make_state(1);
  EXPECT_GT(testing::max_abs_error(logits(0, 4, &again), before), 0);
}

TEST_P(S4Models, EveryParameterHasAGradient) {
  std::vector<int32_t> next(ids.begin() + 1, ids.end());
  next.push_back(-1);
  const testing::PlannedRun once(model.params().device(), true, [&](Context& c) {
    model.params().forget_gradients();
    const Tensor tokens(ids.data(), DType::i32, {1, 40}), targets(next.data(), DType::i32, {1, 40});
    model.loss(c, model.hidden(c, tokens, {}), targets, 1.0f / 39);
    c.tape->backward(c);
  });
  for (const nn::Param& p : model.params()) {
    ASSERT_TRUE(p.var.written) << p.name;
    const double largest = testing::max_abs(testing::to_double(p.var.grad));
    EXPECT_TRUE(std::isfinite(largest)) << p.name;
    EXPECT_GT(largest, 0) << p.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, S4Models, ::testing::Values("s4-byte-small", "s4d-byte-small"),
                         [](const auto& p) {
                           return std::string(p.param) == "s4-byte-small" ? "S4" : "S4D";
                         });

// The C that a fresh DPLR kernel stands for is the drawn one; what is kept is attuned to its length.
TEST(S4Parameters, AFreshCIsDrawnThenAttuned) {
  LanguageModel model(preset("s4-byte-small"));
  model.params().allocate(nn::Purpose::training, DType::f32, false, testing::test_device());
  model.params().initialize(5);
  const std::string kernel = "backbone.layers.1.mixer.layer.kernel.";
  const auto value = [&](const char* name) { return model.params().find(kernel + name)->value; };
  uint64_t stream = 0;
  for (const nn::Param& p : model.params()) {
    ++stream;
    if (p.name == kernel + "C") break;
  }
  const Tensor C = value("C");
  const testing::Values kept = testing::to_double(C);
  std::vector<float> drawn(static_cast<size_t>(C.numel()));
  nn::normal(std::sqrt(0.5))(Tensor(drawn.data(), DType::f32, C.shape), Philox{5, stream});
  const ops::S4Steps steps =
      ops::s4_steps({value("inv_dt"), value("A_real"), value("A_imag"), value("B"), C, value("P")},
                    {.length = model.longest()});
  const int64_t H = C.size(1), N = C.size(2);
  double error = 0, attuned = 0;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t part = 0; part < 2; ++part) {
        const auto i = static_cast<size_t>((h * N + n) * 2 + part);
        const double stands_for = steps.C[static_cast<size_t>((h * 2 + part) * steps.row + n)];
        error = std::max(error, std::abs(stands_for - static_cast<double>(drawn[i])));
        attuned = std::max(attuned, std::abs(kept[i] - stands_for));
      }
  EXPECT_LE(error, 1e-5);
  EXPECT_GT(attuned, 0.1);
}

// The published recipe: systems have their own learning rate and no decay, C and D decay.
TEST(S4Parameters, RatesAndDecayAreThePublishedOnes) {
  const LanguageModel model(preset("s4-byte-small"));
  int own = 0;
  for (const nn::Param& p : model.params()) {
    const bool system =
        p.name.find(".layer.kernel.") != std::string::npos && !p.name.ends_with(".C");
    EXPECT_EQ(p.lr, system ? 1e-3f : 0.0f) << p.name;
    EXPECT_FALSE(system && p.decay) << p.name;
    own += system ? 1 : 0;
  }
  EXPECT_EQ(own, 6 * 5);
}

// As state-spaces/s4 prints them for d_state 6; golden cases have the others.
TEST(S4Parameters, InitialSystemsAreThoseOfThePublishedCode) {
  const auto expect = [](const nn::InitialSystem& s, double real, const Values& imag) {
    ASSERT_EQ(s.A.size(), imag.size());
    for (size_t n = 0; n < imag.size(); ++n) {
      EXPECT_EQ(s.A[n].real(), real);
      EXPECT_NEAR(s.A[n].imag(), imag[n], 1e-4);
    }
  };
  expect(nn::s4d_initial("inv2", 3), -0.5, {-9.5493, -3.8197, -1.9099});
  expect(nn::s4d_initial("quad", 3), -0.5, {-0.3183, -2.8648, -7.9577});
  const nn::InitialSystem fout = nn::hippo_fout(3);
  expect(fout, 0, {-6.2832, -3.1416, 0});
  const Values size = {1, 1, 0.7071};
  for (size_t n = 0; n < 3; ++n) {
    EXPECT_NEAR(fout.P[n].real(), size[n], 1e-4);
    EXPECT_EQ(fout.P[n].imag(), 0);
    EXPECT_EQ(fout.B[n], fout.P[n]);
  }
}

}  // namespace
}  // namespace krait::models
