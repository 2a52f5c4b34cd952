// Blocks mixed by a config: which layers become what, and what cannot be mixed. Their algebra is in
// language_model_test, through tests/family.
#include <gtest/gtest.h>

#include "krait/models/architecture.h"
#include "krait/models/language_model.h"
#include "krait/testing/files.h"

namespace krait::models {
namespace {

Config blocks(const std::string& layers, int64_t n_layer = 3) {
  const Json json = parse_json(
      fmt::format(R"({{"model_type": "blocks", "hidden_size": 16, "num_hidden_layers": {},
                       "vocab_size": 32, "layers": {}, "mamba2": {{"headdim": 8, "d_state": 4}},
                       "attention": {{"num_heads": 2}}, "experts": {{"n_experts": 2}}}})",
                  n_layer, layers),
      "config");
  return architecture("blocks").read(JsonView(json, "config"), Layout::huggingface);
}

TEST(Blocks, LayersStartAgainWhereThereAreMore) {
  LanguageModel model(blocks(R"(["mamba2+experts", "attention+mlp"])"));
  for (const char* name :
       {"backbone.layers.0.mamba2_norm.weight", "backbone.layers.0.mamba2.A_log",
        "backbone.layers.0.experts.router.weight", "backbone.layers.1.attention.q_proj.weight",
        "backbone.layers.1.mlp.up_proj.weight", "backbone.layers.2.mamba2.A_log"})
    EXPECT_NE(model.params().find(name), nullptr) << name;
  EXPECT_TRUE(model.routes());
  EXPECT_EQ(model.state_parts().size(), 2u + 3u + 2u);  // conv, ssm; k, v, length
}

TEST(Blocks, WhatCannotBeMixedIsRefused) {
  const auto message = [](const std::string& layers) {
    return testing::error_of([&] { LanguageModel model(blocks(layers)); });
  };
  for (const auto& [layers, words] : {std::pair{R"(["rnn"])", "mamba3"},
                                      {R"(["mlp+mlp"])", "at most once"},
                                      {R"(["mamba2+attention"])", "one state each"},
                                      {"[]", "a list"},
                                      {R"([1])", "strings"},
                                      {R"(["bimamba"])", "must not hear"}})
    EXPECT_NE(message(layers).find(words), std::string::npos) << layers << ": " << message(layers);
}

}  // namespace
}  // namespace krait::models
