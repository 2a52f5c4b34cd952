#include <gtest/gtest.h>

#include <cmath>

#include "krait/autograd/plan.h"
#include "krait/models/architecture.h"
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

// "mlp_dim" of mamba_ssm's attention: rows [q, k, v, up, gate] in, columns [heads, up · silu(gate)] out.
TEST(Transformerpp, AnMlpBesideTheHeadsIsAddedThroughTheSameProjections) {
  constexpr size_t D = 4, V = 8, M = 128, C = 12;  // one head of four channels
  const Json config =
      parse_json(R"({"d_model": 4, "n_layer": 1, "vocab_size": 8, "attn_layer_idx": [0],
      "attn_cfg": {"causal": true, "num_heads": 1, "mlp_dim": 3}})",
                 "config.json");
  LanguageModel model(kTransformerpp.read(JsonView(config, "config.json"), Layout::original));
  model.params().allocate(nn::Purpose::inference, DType::f32);
  model.params().initialize(5);
  const auto param = [&](const std::string& name) {
    const Tensor& t = model.params().find("backbone." + name)->value;
    return std::span<float>(t.as<float>(), static_cast<size_t>(t.numel()));
  };
  const auto in = param("layers.0.mixer.in_proj.weight"),
             bias = param("layers.0.mixer.in_proj.bias"),
             out = param("layers.0.mixer.out_proj.weight"), embedding = param("embeddings.weight");
  ASSERT_EQ(in.size(), (C + 2 * M) * D);
  ASSERT_EQ(out.size(), D * (D + M));
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 0.1f * static_cast<float>(i % 7);
  for (size_t d = 0; d < D; ++d)  // the heads' share of the output
    std::fill_n(&out[d * (D + M)], D, 0.0f);
  const auto normed = [](std::vector<double> x) {
    double squares = 1e-5 * D;
    for (const double v : x) squares += v * v;
    for (double& v : x) v /= std::sqrt(squares / D);
    return x;
  };
  const int32_t id = 3;
  std::vector<double> r(&embedding[id * D], &embedding[id * D] + D);
  const std::vector<double> x = normed(r);
  const auto row = [&](size_t i) {
    double sum = bias[i];
    for (size_t d = 0; d < D; ++d) sum += in[i * D + d] * x[d];
    return sum;
  };
  for (size_t m = 0; m < M; ++m) {
    const double gate = row(C + M + m), y = row(C + m) * gate / (1 + std::exp(-gate));
    for (size_t d = 0; d < D; ++d) r[d] += out[d * (D + M) + D + m] * y;
  }
  r = normed(r);

  const auto run = [&](Context& c) {
    return model.logits(c,
                        model.hidden(c, Tensor(const_cast<int32_t*>(&id), DType::i32, {1, 1}), {}));
  };
  Context c;
  Arena arena(plan(c, false, run).bytes);
  c.arena = &arena;
  const Tensor logits = run(c);
  for (size_t v = 0; v < V; ++v) {
    double expected = 0;
    for (size_t d = 0; d < D; ++d) expected += embedding[v * D + d] * r[d];
    EXPECT_NEAR(get(logits, static_cast<int64_t>(v)), expected, 1e-6) << v;
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
