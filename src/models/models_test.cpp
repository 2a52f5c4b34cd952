#include <gtest/gtest.h>

#include <cmath>

#include "krait/models/language_model.h"
#include "krait/models/mamba1.h"
#include "krait/testing/errors.h"

namespace krait::models {
namespace {

// Parameter counts of the published files, a tied head counted once (reference/systems.md, section 0).
TEST(Presets, HaveThePublishedParameterCounts) {
  const std::pair<const char*, int64_t> published[] = {
      {"mamba-130m", 129135360},          {"mamba-370m", 371516416},
      {"mamba-790m", 793204224},          {"mamba-1.4b", 1372178432},
      {"mamba-2.8b", 2768345600},         {"mambabyte-353m", 353628160},
      {"mambabyte-972m", 973387520},      {"falcon-mamba-7b", 7272665088},
      {"transformerpp-2.7b", 2666457600}, {"mamba2attn-2.7b", 2697590880},
      {"pythia-160m", 162322944},         {"zamba2-1.2b", 1215064704}};
  for (const auto& [name, count] : published) {
    const LanguageModel model(preset(name));
    EXPECT_EQ(model.params().numel(), count) << name;
  }
}

TEST(Presets, UnknownNameListsTheKnownOnes) {
  testing::expect_error([] { preset("mamba-7b"); }, "mamba-130m");
}

TEST(Initialisation, T2_SoftplusOfDtBiasIsLogUniformAfterTheWholeModelIsBuilt) {
  LanguageModel model(preset("byte-small"));
  model.params().allocate(nn::Purpose::training, DType::f32);
  model.params().initialize(7);
  double low = 1, high = 0, mean_log = 0;
  int64_t n = 0;
  for (const nn::Param& p : model.params()) {
    if (!p.name.ends_with("dt_proj.bias")) continue;
    for (int64_t i = 0; i < p.shape.numel(); ++i, ++n) {
      const double dt = std::log1p(std::exp(get(p.value, i)));
      low = std::min(low, dt);
      high = std::max(high, dt);
      mean_log += std::log(dt);
    }
  }
  ASSERT_EQ(n, 6 * 512);
  EXPECT_GE(low, 1e-3 * (1 - 1e-5));
  EXPECT_LE(high, 0.1 * (1 + 1e-5));
  EXPECT_LT(low, 1.1e-3);
  EXPECT_GT(high, 0.09);
  // The mean of log dt is the middle of log-uniform; its standard error is 4.6 / sqrt(12 n) = 0.024.
  EXPECT_NEAR(mean_log / static_cast<double>(n), std::log(1e-2), 0.1);
}

TEST(Initialisation, FollowsThePublishedRules) {
  LanguageModel model(preset("byte-tiny"));  // D = 128, E = 256, R = 8, 4 layers
  model.params().allocate(nn::Purpose::training, DType::f32);
  model.params().initialize(1);
  const auto largest = [&](const char* name) {
    const nn::Param* p = model.params().find(name);
    double m = 0;
    for (int64_t i = 0; i < p->shape.numel(); ++i) m = std::max(m, std::abs(get(p->value, i)));
    return m;
  };
  const auto within = [&](const char* name, double bound) {
    EXPECT_LE(largest(name), bound) << name;
    EXPECT_GE(largest(name), 0.95 * bound) << name;
  };
  within("backbone.layers.0.mixer.in_proj.weight", 1 / std::sqrt(128.0));
  within("backbone.layers.0.mixer.x_proj.weight", 1 / std::sqrt(256.0));
  within("backbone.layers.0.mixer.out_proj.weight", 1 / std::sqrt(256.0) / std::sqrt(4.0));
  within("backbone.layers.0.mixer.dt_proj.weight", 1 / std::sqrt(8.0));
  within("backbone.layers.0.mixer.conv1d.weight", 0.5);
  within("backbone.layers.0.mixer.conv1d.bias", 0.5);
  const nn::Param* A_log = model.params().find("backbone.layers.3.mixer.A_log");
  for (int64_t n = 0; n < 16; ++n)
    EXPECT_FLOAT_EQ(static_cast<float>(get(A_log->value, 5 * 16 + n)),
                    std::log(static_cast<float>(n + 1)));
  const nn::Param* embedding = model.params().find("backbone.embeddings.weight");
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < embedding->shape.numel(); ++i) {
    sum += get(embedding->value, i);
    squares += get(embedding->value, i) * get(embedding->value, i);
  }
  const double n = static_cast<double>(embedding->shape.numel());
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 0.02 * 3 / std::sqrt(2 * n));
  EXPECT_NEAR(sum / n, 0, 0.02 * 4 / std::sqrt(n));
}

TEST(Parameters, T1_T3_OnlyMatricesDecayAndSsmTensorsStayFloat32) {
  LanguageModel model(preset("byte-tiny"));
  for (const nn::Param& p : model.params()) {
    const bool vector = p.shape.rank == 1 || p.name.ends_with("A_log");
    EXPECT_EQ(p.decay, !vector) << p.name;
    if (vector) {
      EXPECT_TRUE(p.keep_float32) << p.name;
    }
  }
  model.params().allocate(nn::Purpose::training, DType::bf16);
  for (const nn::Param& p : model.params()) {
    EXPECT_EQ(p.var.grad.dtype, DType::f32) << p.name;
    EXPECT_EQ(p.value.dtype, p.keep_float32 ? DType::f32 : DType::bf16) << p.name;
    EXPECT_EQ(!p.low, p.keep_float32) << p.name;
  }
}

TEST(Tokens, T36_IdsOfTheVocabularyPaddingAreRefused) {
  const LanguageModel model(mamba_config(16, 1, 300, 8));
  EXPECT_EQ(model.config().padded_vocab(), 304);
  const std::vector<int32_t> good = {0, 299}, pad = {0, 300}, negative = {-1};
  EXPECT_NO_THROW(model.check_tokens(good.data(), 2));
  EXPECT_THROW(model.check_tokens(pad.data(), 2), Error);
  EXPECT_THROW(model.check_tokens(negative.data(), 1), Error);
}

}  // namespace
}  // namespace krait::models
