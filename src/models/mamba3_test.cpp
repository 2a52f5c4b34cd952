// Mamba-3: presets, config.json both ways, what the weights correct, initial values.
#include <gtest/gtest.h>

#include <cmath>

#include "krait/models/architecture.h"
#include "krait/models/language_model.h"
#include "krait/testing/errors.h"

namespace krait::models {
namespace {

Config read(const std::string& text) {
  const Json json = parse_json(text, "config.json");
  return kMamba3.read(JsonView(json, "config.json"), Layout::original);
}

std::string message_of(const std::string& text) {
  return testing::error_of([&] { check(read(text)); });
}

int64_t parameters(const Config& c) { return LanguageModel(c).params().numel(); }

// The paper names its models by their parameters, the embedding counted once.
TEST(Mamba3, PresetsHaveTheNamedSizes) {
  const std::pair<const char*, double> named[] = {
      {"mamba3-180m", 180e6},      {"mamba3-440m", 440e6},      {"mamba3-880m", 880e6},
      {"mamba3-1.5b", 1.5e9},      {"mamba3-mimo-180m", 180e6}, {"mamba3-mimo-440m", 440e6},
      {"mamba3-mimo-880m", 880e6}, {"mamba3-mimo-1.5b", 1.5e9}};
  for (const auto& [name, size] : named)
    EXPECT_NEAR(static_cast<double>(parameters(preset(name))) / size, 1, 0.05) << name;
}

TEST(Mamba3, ConfigGoesBothWays) {
  const std::string text =
      R"({"d_model": 64, "d_intermediate": 100, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {
          "layer": "Mamba3", "d_state": 22, "expand": 3, "headdim": 16, "ngroups": 2,
          "rope_fraction": 0.7, "is_mimo": true, "mimo_rank": 3, "is_outproj_norm": true,
          "A_floor": 0.01, "A_activation": "softplus", "dt_min": 0.002, "dt_max": 0.2,
          "dt_init_floor": 0.001}, "rms_norm": true, "residual_in_fp32": true,
          "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": false})";
  const Config c = read(text);
  EXPECT_NO_THROW(check(c));
  EXPECT_EQ(c.padded_vocab(), 64);
  Json written = Json::parse(c.body->json(c, Layout::original).dump());
  Json asked = Json::parse(text);
  // int(22 * 0.7) / 2 = 7 angles: another fraction may say the same.
  const double fraction = written["ssm_cfg"]["rope_fraction"].get<double>();
  EXPECT_EQ(static_cast<int64_t>(22 * fraction) / 2, 7);
  written["ssm_cfg"].erase("rope_fraction");
  asked["ssm_cfg"].erase("rope_fraction");
  EXPECT_EQ(written, asked);
  EXPECT_THROW(c.body->json(c, Layout::huggingface), Error);
}

TEST(Mamba3, AnOddNumberOfTurnedDimensionsLosesOne) {
  const Config c = read(
      R"({"d_model": 16, "n_layer": 1, "vocab_size": 8,
          "ssm_cfg": {"layer": "Mamba3", "d_state": 22, "headdim": 8}})");
  LanguageModel model(c);
  // z, x, B, C, three numbers a head, and int(22 * 0.5) / 2 = 5 angles
  EXPECT_EQ(model.params().find("backbone.layers.0.mixer.in_proj.weight")->shape[0],
            2 * 32 + 2 * 22 + 3 * 4 + 5);
}

TEST(Mamba3, SaysWhichSizeCannotBe) {
  const auto with = [](const std::string& ssm) {
    return message_of(R"({"d_model": 16, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"layer":
                      "Mamba3", "d_state": 8, )" +
                      ssm + "}}");
  };
  EXPECT_EQ(with("\"headdim\": 8, \"ngroups\": 3"),
            "config: ngroups: expected a divisor of the 4 heads, got 3");
  EXPECT_EQ(with("\"headdim\": 7"),
            "config: headdim: expected a divisor of the inner width 32, got 7");
  EXPECT_NE(with("\"headdim\": 8, \"rope_fraction\": 1.5").find("rope_fraction"),
            std::string::npos);
  EXPECT_NE(with("\"A_activation\": \"relu\"").find("A_activation"), std::string::npos);
}

// A file that says too little: everything but the number of groups can be read off the shapes.
TEST(Mamba3, FollowsTheWeights) {
  const LanguageModel model(preset("mamba3-mimo-180m"));
  Config c = read(
      R"({"d_model": 768, "n_layer": 3, "vocab_size": 128256, "ssm_cfg": {"layer": "Mamba3"}})");
  std::vector<std::string> notes;
  kMamba3.follow(
      c,
      [&](const std::string& name) -> const Shape* {
        for (const nn::Param& p : model.params())
          if (p.name == name) return &p.shape;
        return nullptr;
      },
      notes);
  EXPECT_EQ(notes.size(), 4u);  // rank, MIMO, MLP, layers
  EXPECT_EQ(parameters(c), model.params().numel());
  const Json shape = Json::parse(c.body->json(c, Layout::original).dump());
  EXPECT_EQ(shape["ssm_cfg"]["mimo_rank"], 4);
  EXPECT_EQ(shape["d_intermediate"], 1280);
}

TEST(Mamba3, StartsFromThePublishedValues) {
  LanguageModel model(read(
      R"({"d_model": 64, "n_layer": 4, "vocab_size": 61, "d_intermediate": 128, "ssm_cfg": {
          "layer": "Mamba3", "d_state": 16, "headdim": 16, "is_mimo": true, "mimo_rank": 4}})"));
  model.params().allocate(nn::Purpose::training, DType::f32);
  model.params().initialize(3);
  const auto range = [&](const std::string& part) {
    const Tensor& t = model.params().find("backbone.layers.1." + part)->value;
    double low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < t.numel(); ++i) {
      low = std::min(low, get(t, i));
      high = std::max(high, get(t, i));
    }
    return std::pair(low, high);
  };
  for (const char* one : {"mixer.B_bias", "mixer.C_bias", "mixer.mimo_z", "mixer.D",
                          "mixer.B_norm.weight", "mixer.C_norm.weight", "norm2.weight"})
    EXPECT_EQ(range(one), std::pair(1.0, 1.0)) << one;
  for (const char* share : {"mixer.mimo_x", "mixer.mimo_o"})
    EXPECT_EQ(range(share), std::pair(0.25, 0.25)) << share;
  const auto within = [&](const char* name, double bound) {
    EXPECT_LE(range(name).second, bound) << name;
    EXPECT_GE(range(name).second, 0.95 * bound) << name;
  };
  within("mixer.in_proj.weight", 1 / std::sqrt(64.0));
  within("mixer.out_proj.weight", 1 / std::sqrt(128.0) / 2);
  within("mlp.fc2.weight", 1 / std::sqrt(128.0) / 2);
  const auto [low, high] = range("mixer.dt_bias");
  EXPECT_GE(std::log1p(std::exp(low)), 1e-3 * (1 - 1e-5));
  EXPECT_LE(std::log1p(std::exp(high)), 0.1 * (1 + 1e-5));
  // As the published code: none on dt_bias, D and norms; the biases of B and C are matrices to it.
  for (const nn::Param& p : model.params()) EXPECT_EQ(p.decay, p.shape.rank > 1) << p.name;
}

}  // namespace
}  // namespace krait::models
