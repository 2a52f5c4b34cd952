// Mamba-2: its published sizes and initial values, what its layouts say, and a sequence of several chunks
// of ssd cut anywhere. The rest of its algebra is in language_model_test.cpp.
#include "krait/models/mamba2.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/models/architecture.h"
#include "krait/models/language_model.h"
#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait::models {
namespace {

TEST(Mamba2, PresetsHaveThePublishedParameterCounts) {
  const std::pair<const char*, int64_t> published[] = {{"mamba2-130m", 128989632},
                                                       {"mamba2-370m", 368346624},
                                                       {"mamba2-780m", 780161280},
                                                       {"mamba2-1.3b", 1343757312},
                                                       {"mamba2-2.7b", 2702599680}};
  for (const auto& [name, count] : published) {
    const LanguageModel model(preset(name));
    EXPECT_EQ(model.params().numel(), count) << name;
  }
}

Config small_config() {
  Config c = mamba2_config(32, 2, 37, 8);
  nn::Mamba2Config m = mamba2_of(c);
  m.d_ssm = 48, m.d_mlp = 16, m.headdim = 8, m.groups = 3, m.d_state = 12;
  m.D_per_channel = true, m.in_bias = m.out_bias = true, m.dt_low = 0.01f, m.dt_high = 0.9f;
  return with_mamba2(c, m);
}

TEST(Mamba2, T1_T2_T3_InitialValuesFollowThePublishedRules) {
  LanguageModel model(mamba2_config(1024, 4, 37, 8));  // H = 32
  model.params().allocate(nn::Purpose::training, DType::f32);
  model.params().initialize(3);
  double low = 1, high = 0, A_low = 100, A_high = 0;
  for (const nn::Param& p : model.params()) {
    const bool vector = p.shape.rank == 1;
    EXPECT_EQ(p.decay, !vector) << p.name;
    EXPECT_TRUE(!vector || p.keep_float32) << p.name;
    for (int64_t i = 0; i < p.shape.numel() && vector; ++i) {
      const double x = get(p.value, i);
      if (p.name.ends_with("dt_bias")) {
        low = std::min(low, std::log1p(std::exp(x))),
        high = std::max(high, std::log1p(std::exp(x)));
      } else if (p.name.ends_with("A_log")) {
        A_low = std::min(A_low, std::exp(x)), A_high = std::max(A_high, std::exp(x));
      } else if (p.name.ends_with("mixer.D") || p.name.ends_with("norm.weight")) {
        EXPECT_EQ(x, 1) << p.name;
      }
    }
  }
  // 128 draws of each: the ends of the ranges are nearly reached.
  EXPECT_GE(low, 1e-3 * (1 - 1e-5));
  EXPECT_LE(high, 0.1 * (1 + 1e-5));
  EXPECT_LT(low, 1.5e-3);
  EXPECT_GT(high, 0.07);
  EXPECT_GE(A_low, 1 - 1e-5);
  EXPECT_LE(A_high, 16 + 1e-4);
  EXPECT_LT(A_low, 2);
  EXPECT_GT(A_high, 15);
  const nn::Param* out = model.params().find("backbone.layers.0.mixer.out_proj.weight");
  double largest = 0;
  for (int64_t i = 0; i < out->shape.numel(); ++i)
    largest = std::max(largest, std::abs(get(out->value, i)));
  EXPECT_NEAR(largest, 1 / std::sqrt(2048.0) / 2, 1e-4);
}

Config again(const Config& c, Layout layout) {
  const Json json = Json::parse(c.body->json(c, layout).dump());
  return architecture("mamba2").read(JsonView(json, "config.json"), layout);
}

TEST(Mamba2, ConfigsSurviveBothLayouts) {
  const Config c = small_config();
  const Config original = again(c, Layout::original);
  EXPECT_EQ(original.body->json(original, Layout::original), c.body->json(c, Layout::original));
  EXPECT_EQ(mamba2_of(original).d_mlp, 16);
  EXPECT_EQ(mamba2_of(original).dt_high, 0.9f);
  EXPECT_THROW(c.body->json(c, Layout::huggingface), Error);

  const Config published = preset("mamba2-130m");
  const Config hub = again(published, Layout::huggingface);
  EXPECT_EQ(mamba2_of(hub).heads(), 24);
  EXPECT_EQ(mamba2_of(hub).dt_high, std::numeric_limits<float>::infinity());
  EXPECT_EQ(hub.padded_vocab(), 50288);
}

TEST(Mamba2, SizesThatDoNotFitAreRefused) {
  const auto refused = [](auto change) {
    Config c = small_config();
    nn::Mamba2Config m = mamba2_of(c);
    change(m);
    EXPECT_THROW(check(with_mamba2(c, m)), Error);
  };
  refused([](nn::Mamba2Config& m) { m.headdim = 7; });
  refused([](nn::Mamba2Config& m) { m.headdim = 0; });
  refused([](nn::Mamba2Config& m) { m.groups = 4; });
  refused([](nn::Mamba2Config& m) { m.d_state = 257; });
  refused([](nn::Mamba2Config& m) { m.d_ssm = 0; });
  refused([](nn::Mamba2Config& m) { m.dt_low = 2; });
}

constexpr int64_t kLength = 150;  // three chunks of ssd

std::unique_ptr<LanguageModel> small_model(nn::Purpose purpose) {
  auto model = std::make_unique<LanguageModel>(small_config());
  model->params().allocate(purpose, DType::f32);
  model->params().initialize(11);
  uint64_t stream = 100;
  for (nn::Param& p : model->params()) {
    const Philox rng{5, ++stream};
    for (int64_t i = 0; i < p.shape.numel(); ++i)
      set(p.value, i, get(p.value, i) + 0.1 * rng.normal(static_cast<uint64_t>(i)));
  }
  return model;
}

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    ids[static_cast<size_t>(i)] =
        static_cast<int32_t>(Philox{seed, 0}.uniform_double(static_cast<uint64_t>(i)) * 37);
  return ids;
}

std::vector<double> run(const LanguageModel& model, std::vector<int32_t> ids, const Shape& shape,
                        const Pass& pass) {
  const Tensor tokens(ids.data(), DType::i32, shape);
  std::vector<double> v;
  const testing::PlannedRun once(model.params().device(), false, [&](Context& c) {
    const Tensor logits = model.logits(c, model.hidden(c, tokens, pass));
    if (!c.planning()) v = testing::to_double(logits);
  });
  return v;
}

// At most 1e-5 of the spread of the logits (docs/numerics.md).
void expect_same(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  double square = 0, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    square += a[i] * a[i];
    difference = std::max(difference, std::abs(a[i] - b[i]));
  }
  EXPECT_LE(difference, 1e-5 * std::sqrt(square / static_cast<double>(a.size())));
}

TEST(Mamba2Algebra, T12_T19_T20_AnySplitIsTheWhole) {
  const auto model = small_model(nn::Purpose::inference);
  const std::vector<int32_t> ids = random_tokens(kLength, 1);
  const std::vector<double> whole = run(*model, ids, {1, kLength}, {});
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{64, 64, 22}, {1, 149}, {70, 3, 9, 68}, std::vector<int64_t>(150, 1)}) {
    nn::State state = model->make_state(1);
    std::vector<double> pieces;
    int64_t at = 0;
    for (const int64_t n : cuts) {
      const auto logits =
          run(*model, {ids.begin() + at, ids.begin() + at + n}, {1, n}, {nullptr, &state, &state});
      pieces.insert(pieces.end(), logits.begin(), logits.end());
      at += n;
    }
    expect_same(whole, pieces);
  }
}

}  // namespace
}  // namespace krait::models
