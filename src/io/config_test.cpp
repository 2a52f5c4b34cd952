#include "krait/io/config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/json.h"
#include "krait/models/architecture.h"
#include "krait/models/language_model.h"
#include "krait/models/mamba1.h"
#include "krait/models/rotary_keys.h"
#include "krait/testing/errors.h"

namespace krait {
namespace {

models::Config parse(const std::string& text, Layout expected) {
  Layout layout{};
  const models::Config c = parse_config(text, "config.json", layout);
  EXPECT_EQ(layout, expected);
  return c;
}

std::string message_of(const std::string& text) {
  Layout layout{};
  return testing::error_of([&] { parse_config(text, "config.json", layout); });
}

TEST(Config, OriginalFilesLeaveOutWhatIsDefault) {
  const models::Config c = parse(
      R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
          "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8})",
      Layout::original);
  EXPECT_EQ(c.padded_vocab(), 50280);
  EXPECT_EQ(models::mamba1_of(c).d_inner, 1536);
  EXPECT_EQ(models::mamba1_of(c).dt_rank, 48);
  EXPECT_EQ(models::mamba1_of(c).d_state, 16);
  EXPECT_TRUE(c.tie_embeddings);
  EXPECT_EQ(c.norm, ops::NormKind::rms);
}

TEST(Config, HuggingFaceReadsSizesAndIgnoresRedundantKeys) {
  const models::Config c = parse(
      R"({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 300, "d_inner": 7,
          "time_step_rank": "auto", "intermediate_size": 160, "state_size": 8, "use_bias": true,
          "eos_token_id": [0, 2], "layer_norm_epsilon": 1e-6, "time_step_max": {"__float__": "Infinity"}})",
      Layout::huggingface);
  EXPECT_EQ(models::mamba1_of(c).d_inner, 160);
  EXPECT_EQ(models::mamba1_of(c).dt_rank, 4);
  EXPECT_EQ(models::mamba1_of(c).d_state, 8);
  EXPECT_TRUE(models::mamba1_of(c).proj_bias);
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{0, 2}));
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-6f);
}

TEST(Config, BothLayoutsRoundTrip) {
  models::Config c = models::mamba_config(40, 3, 300, 8);
  nn::Mamba1Config m = models::mamba1_of(c);
  m.d_inner = 120;
  m.d_state = 5;
  m.d_conv = 3;
  m.dt_rank = 9;
  m.conv_bias = false;
  m.proj_bias = true;
  m.dt_constant = true;
  m.dt_min = 0.002;
  c = models::with_mamba1(c, m);
  c.tie_embeddings = false;
  for (const Layout layout : {Layout::huggingface, Layout::original}) {
    const models::Config d = parse(config_json(c, layout, DType::f32), layout);
    const nn::Mamba1Config& n = models::mamba1_of(d);
    EXPECT_EQ(d.d_model, c.d_model);
    EXPECT_EQ(d.n_layer, c.n_layer);
    EXPECT_EQ(d.padded_vocab(), c.padded_vocab());
    EXPECT_EQ(n.d_inner, m.d_inner);
    EXPECT_EQ(n.d_state, m.d_state);
    EXPECT_EQ(n.d_conv, m.d_conv);
    EXPECT_EQ(n.dt_rank, m.dt_rank);
    EXPECT_EQ(n.conv_bias, m.conv_bias);
    EXPECT_EQ(n.proj_bias, m.proj_bias);
    EXPECT_EQ(n.dt_constant, m.dt_constant);
    EXPECT_EQ(n.dt_min, m.dt_min);
    EXPECT_EQ(d.tie_embeddings, c.tie_embeddings);
    EXPECT_EQ(d.norm_eps, c.norm_eps);
  }
}

TEST(Config, NemotronHNamesItsLayersByAPatternOrAList) {
  const auto read = [](const std::string& layers) {
    const models::Config c = parse(
        R"({"model_type": "nemotron_h", "use_bias": true, )" + layers + "}", Layout::huggingface);
    return parse_json(config_json(c, Layout::huggingface, DType::f32), "written");
  };
  for (const char* layers :
       {R"("hybrid_override_pattern": "M*-M", "num_hidden_layers": 4)",
        R"("layers_block_type": ["linear_attention", "full_attention", "mlp", "mamba"])"}) {
    const Json written = read(layers);
    EXPECT_EQ(written.at("hybrid_override_pattern"), "M*-M") << layers;
    EXPECT_EQ(written.at("num_hidden_layers"), 4) << layers;
    EXPECT_EQ(written.at("use_bias"), true) << layers;
  }
  EXPECT_NE(message_of(R"({"model_type": "nemotron_h", "layers_block_type": ["moe"]})")
                .find("layers_block_type"),
            std::string::npos);
}

TEST(Config, AnOddPartOfAHeadIsTurnedAsTransformersDoes) {
  const ops::Rotation odd = models::rotation_of({10000, 0.5}, 10),
                      even = models::rotation_of({10000, 0.5}, 8);
  EXPECT_EQ(odd.R, 6);  // 5 / 2 pairs rounded up
  for (int i = 0; i < 3; ++i)
    EXPECT_NEAR(std::pow(odd.base, -2.0 * i / 6) / std::pow(10000, -2.0 * i / 5), 1, 1e-14) << i;
  EXPECT_EQ(even.R, 4);
  EXPECT_EQ(even.base, 10000);
  EXPECT_NE(message_of(R"({"model_type": "gpt_neox", "hidden_size": 15, "num_attention_heads": 3,
                           "num_hidden_layers": 1, "rotary_pct": 1})")
                .find("at most 5 elements of a head, got 6"),
            std::string::npos);
}

TEST(Config, SlowerTurnsOfLlama3AndLinearAreReadAndWritten) {
  const std::string shell =
      R"("hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10, "num_attention_heads": 2,
      "intermediate_size": 16, "max_position_embeddings": 64)";
  const auto written = [&](const std::string& type, const std::string& keys) {
    return parse_json(
        config_json(parse("{\"model_type\": \"" + type + "\", " + shell + ", " + keys + "}",
                          Layout::huggingface),
                    Layout::huggingface, DType::f32),
        "written");
  };
  const std::string llama3 =
      R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32)";
  for (const std::string& keys :
       {R"("rope_theta": 500000.0, "rope_scaling": )" + llama3 + "}",
        R"("rope_parameters": )" + llama3 + R"(, "rope_theta": 500000.0})"}) {
    const Json j = written("llama", keys);
    EXPECT_EQ(j.at("rope_theta"), 500000.0);
    EXPECT_EQ(j.at("rope_scaling"), parse_json(llama3 + "}", "expected"));
  }
  for (const char* type : {"llama", "gpt_neox"})
    EXPECT_EQ(
        written(type, R"("rope_scaling": {"type": "linear", "factor": 2})").at("rope_scaling"),
        parse_json(R"({"rope_type": "linear", "factor": 2.0})", "expected"));
  EXPECT_FALSE(written("llama", R"("rope_scaling": null)").contains("rope_scaling"));
  for (const auto& [scaling, part] :
       {std::pair{R"({"rope_type": "yarn", "factor": 2})", "rope_type"},
        std::pair{R"({"rope_type": "linear"})", "factor"},
        std::pair{R"({"rope_type": "linear", "factor": 0.5})", "at least 1"},
        std::pair{
            R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1})",
            "high_freq_factor"}}) {
    const std::string message =
        message_of("{\"model_type\": \"llama\", " + shell + ", \"rope_scaling\": " + scaling + "}");
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(Config, BambaSaysWhereTransformersLooksWhatPartOfAHeadIsTurned) {
  const models::Config c = parse(
      R"({"model_type": "bamba", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10, "num_attention_heads": 2,
          "num_key_value_heads": 1, "intermediate_size": 16, "attn_layer_indices": [0], "mamba_n_heads": 2,
          "mamba_d_head": 8, "rope_theta": 100, "partial_rotary_factor": 1.0,
          "rope_scaling": {"type": "linear", "factor": 2}})",
      Layout::huggingface);
  const Json j = parse_json(config_json(c, Layout::huggingface, DType::f32), "written");
  EXPECT_EQ(j.at("rope_parameters"),
            parse_json(R"({"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0,
                           "partial_rotary_factor": 1.0})",
                       "expected"));
  EXPECT_FALSE(j.contains("rope_scaling"));  // would take its place there
}

TEST(Config, MistralSeesAsManyTokensAsInTransformers) {
  const auto window = [](const std::string& key) {
    return parse_json(
        config_json(
            parse(
                R"({"model_type": "mistral", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10,
                              "num_attention_heads": 2, "intermediate_size": 16)" +
                    key + "}",
                Layout::huggingface),
            Layout::huggingface, DType::f32),
        "written");
  };
  EXPECT_EQ(window("").at("sliding_window"), 4096);
  EXPECT_EQ(window(R"(, "sliding_window": 5)").at("sliding_window"), 5);
  EXPECT_FALSE(window(R"(, "sliding_window": null)").contains("sliding_window"));
}

// transformers refuses 2.0 where it expects a whole number.
TEST(Config, MistralHasNoBiasesAsInTransformers) {
  const models::Config c = parse(
      R"({"model_type": "mistral", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10, "num_attention_heads": 2,
          "intermediate_size": 16, "sliding_window": 3, "attention_bias": true, "mlp_bias": true})",
      Layout::huggingface);
  const models::LanguageModel model(c);
  for (const nn::Param& p : model.params()) EXPECT_FALSE(p.name.ends_with("bias")) << p.name;
}

TEST(Config, ExpansionsAreWrittenAsWholeNumbers) {
  int n = 0;
  for (const models::Architecture* a : models::architectures())
    for (const std::string& name : a->presets()) {
      const models::Config c = models::preset(name);
      if (c.layout != Layout::huggingface) continue;
      const Json j = parse_json(config_json(c, Layout::huggingface, DType::f32), name);
      for (const char* key : {"expand", "mamba_expand"})
        if (j.contains(key)) {
          EXPECT_TRUE(j.at(key).is_number_integer()) << name << " " << j.at(key);
          ++n;
        }
    }
  EXPECT_GT(n, 10);
}

TEST(Config, WhatALayoutCannotSayIsRefused) {
  models::Config c = models::mamba_config(40, 3, 300, 8);
  c.norm = ops::NormKind::layer;
  EXPECT_THROW(config_json(c, Layout::huggingface, DType::f32), Error);
  c.norm = ops::NormKind::rms;
  c.norm_eps = 1e-6f;
  EXPECT_THROW(config_json(c, Layout::original, DType::f32), Error);
}

// llm-random's arguments as its script stores them: the expansion is a float there, and what would be another
// model is refused.
TEST(Config, ArgumentsOfMoeMambasScript) {
  Json j = {{"n_blocks", 2},
            {"dmodel", 8},
            {"vocab_size", 5},
            {"cutoff", 16},
            {"n_experts", 3},
            {"expert_size", 4},
            {"ff_mode", "token_choice"},
            {"mamba_expansion", 1.5},
            {"moe_values_exp", "1.0"},
            {"activation_type", "relu"}};
  const models::Config c = parse(j.dump(), Layout::original);
  const Json own = Json::parse(config_json(c, Layout::huggingface, DType::f32));
  EXPECT_EQ(own.at("intermediate_size"), 12);
  const std::pair<const char*, Json> others[] = {
      {"activation_type", "gelu"}, {"block_modules", {"feedforward", "mamba"}},
      {"mamba_mode", "conv"},      {"parallel_blocks", true},
      {"moe_values_exp", "2.0"},   {"get_router_values_from", "lin1_weight"}};
  for (const auto& [key, value] : others) {
    Json other = j;
    other[key] = value;
    EXPECT_NE(message_of(other.dump()).find(key), std::string::npos) << key;
  }
}

TEST(Config, WrongValuesNameTheKey) {
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(message_of(text).find(part), std::string::npos) << message_of(text);
  };
  has(R"({"d_model": "x", "n_layer": 2, "vocab_size": 300})", "d_model");
  has(R"({"n_layer": 2, "vocab_size": 300})", "d_model");
  has(R"({"d_model": 64, "n_layer": 0, "vocab_size": 300})", "n_layer");
  has(R"({"d_model": 64, "n_layer": 2, "vocab_size": -3})", "vocab_size");
  has(R"({"d_model": 64, "n_layer": 2, "vocab_size": 300, "ssm_cfg": {"layer": "Mamba7"}})",
      "Mamba7");
  has(R"({"d_model": 64, "n_layer": 2, "vocab_size": 300, "ssm_cfg": {"expand": 1e300}})",
      "d_inner");
  has(R"({"model_type": "bert"})", "bert");
  has(R"({"model_type": "mamba", "hidden_act": "gelu"})", "hidden_act");
  has(R"({"model_type": "mamba", "time_step_rank": "many"})", "time_step_rank");
  has(R"({"d_model": 64, "n_layer": 2, "vocab_size": 300, "input_size": 40})", "problem_type");
  has("[]", "config.json");
  has("{", "config.json");
}

}  // namespace
}  // namespace krait
