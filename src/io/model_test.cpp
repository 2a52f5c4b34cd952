#include "krait/io/model.h"

#include <gtest/gtest.h>

#include <cstring>

#include "krait/autograd/plan.h"
#include "krait/base/file.h"
#include "krait/base/json.h"
#include "krait/io/config.h"
#include "krait/io/safetensors.h"
#include "krait/io/torch_archive.h"
#include "krait/models/mamba1.h"
#include "krait/testing/errors.h"

namespace krait {
namespace {

namespace fs = std::filesystem;

class ModelFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / fmt::format("krait-model-test-{}", ::getpid());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  static std::unique_ptr<models::LanguageModel> random_model(bool tied = true) {
    models::Config c = models::mamba_config(24, 2, 61, 8);
    c.tie_embeddings = tied;
    auto model = std::make_unique<models::LanguageModel>(c);
    model->params().allocate(nn::Purpose::inference, DType::f32);
    model->params().initialize(3);
    return model;
  }

  static std::vector<float> logits(const models::LanguageModel& model,
                                   DType activation = DType::f32) {
    std::vector<int32_t> ids = {1, 5, 60, 0, 7, 7, 30, 2};
    const Tensor tokens(ids.data(), DType::i32, {2, 4});
    const auto run = [&](Context& c) { return model.logits(c, model.hidden(c, tokens, {})); };
    Context like;
    like.activation = activation;
    Arena arena(plan(like, false, run).bytes);
    like.arena = &arena;
    const Tensor out = run(like);
    const float* p = out.as<float>();
    return {p, p + out.numel()};
  }

  fs::path dir_;
};

TEST_F(ModelFiles, BothLayoutsGiveBackTheSameBits) {
  for (const bool tied : {true, false}) {
    const auto model = random_model(tied);
    for (const Layout layout : {Layout::huggingface, Layout::original}) {
      save_model(*model, dir_, layout, DType::f32);
      const LoadedModel back = load_model(dir_, {});
      EXPECT_EQ(back.layout, layout);
      EXPECT_TRUE(back.notes.empty()) << back.notes.front();
      EXPECT_EQ(back.model->config().tie_embeddings, tied);
      EXPECT_EQ(logits(*back.model), logits(*model));
      fs::remove(dir_ / "model.safetensors");
    }
  }
}

TEST_F(ModelFiles, HashIsOneForAModelInBothLayoutsAndAnotherForAnother) {
  const auto model = random_model();
  save_model(*model, dir_, Layout::huggingface, DType::f32);
  const std::string first = load_model(dir_, {}).hash;
  fs::remove(dir_ / "model.safetensors");
  save_model(*model, dir_, Layout::original, DType::f32);
  EXPECT_EQ(load_model(dir_, {}).hash, first);
  model->params().initialize(4);
  save_model(*model, dir_, Layout::original, DType::f32);
  EXPECT_NE(load_model(dir_, {}).hash, first);
}

TEST_F(ModelFiles, WeightsAreMappedNotCopied) {
  save_model(*random_model(), dir_, Layout::huggingface, DType::f32);
  const LoadedModel back = load_model(dir_, {});
  EXPECT_EQ(back.model->params().allocated_bytes(), 0u);
}

TEST_F(ModelFiles, BFloat16IsReadAsItIsAndConvertedWhereAsked) {
  const auto model = random_model();
  save_model(*model, dir_, Layout::huggingface, DType::bf16);
  LoadOptions o;
  o.dtype = DType::f32;
  const LoadedModel exact = load_model(dir_, o);
  EXPECT_EQ(exact.stored, DType::bf16);
  for (const nn::Param& p : exact.model->params()) {
    EXPECT_EQ(p.value.dtype, DType::f32) << p.name;
    const nn::Param* q = model->params().find(p.name);
    for (int64_t i = 0; i < p.shape.numel(); ++i)
      ASSERT_EQ(get(p.value, i), static_cast<float>(bf16(static_cast<float>(get(q->value, i)))))
          << p.name;
  }
  const LoadedModel half = load_model(dir_, {});  // no type asked for: the stored one
  const nn::Param* in_proj = half.model->params().find("backbone.layers.0.mixer.in_proj.weight");
  EXPECT_EQ(in_proj->value.dtype, DType::bf16);
}

TEST_F(ModelFiles, ShardsOfTorchAreReadThroughTheirIndex) {
  const auto model = random_model();
  save_model(*model, dir_, Layout::original, DType::f32);
  fs::remove(dir_ / "pytorch_model.bin");
  std::vector<NamedTensor> shards[2];
  Json map;
  for (const nn::Param& p : model->params()) {
    const size_t i = map.size() % 2;
    shards[i].push_back({p.name, p.value.detach()});
    map[p.name] = fmt::format("pytorch_model-0000{}-of-00002.bin", i + 1);
  }
  write_torch_archive(dir_ / "pytorch_model-00001-of-00002.bin", shards[0]);
  write_file(dir_ / "pytorch_model.bin.index.json", Json{{"weight_map", map}}.dump());
  const std::string message = testing::error_of([&] { load_model(dir_, {}); });
  EXPECT_NE(message.find("pytorch_model-00002-of-00002.bin"), std::string::npos) << message;
  write_torch_archive(dir_ / "pytorch_model-00002-of-00002.bin", shards[1]);
  EXPECT_EQ(logits(*load_model(dir_, {}).model), logits(*model));
}

TEST_F(ModelFiles, T37_WeightsWinOverAConfigThatDisagrees) {
  const auto model = random_model();
  save_model(*model, dir_, Layout::original, DType::f32);
  write_file(
      dir_ / "config.json",
      R"({"d_model": 24, "n_layer": 3, "vocab_size": 61, "ssm_cfg": {"d_state": 4, "expand": 4}})");
  const LoadedModel back = load_model(dir_, {});
  EXPECT_EQ(back.model->config().n_layer, 2);
  EXPECT_EQ(models::mamba1_of(back.model->config()).d_state, 16);
  EXPECT_EQ(models::mamba1_of(back.model->config()).d_inner, 48);
  EXPECT_EQ(back.notes.size(), 3u);
  EXPECT_EQ(logits(*back.model), logits(*model));
}

// Every size of the original layout's mixers that shapes tell, in config.json otherwise.
TEST_F(ModelFiles, T37_SizesOfTheOriginalLayoutAreReadOffTheWeights) {
  struct Case {
    const char *written, *said;
    size_t notes;
  };
  const char* const mamba2 = R"({"d_model": 24, "n_layer": 2, "vocab_size": 61, "rms_norm": false,
      "ssm_cfg": {"layer": "Mamba2", "d_ssm": 36, "headdim": 6, "d_state": 20, "ngroups": 3, "d_conv": 3,
                  "D_has_hdim": true, "bias": true, "conv_bias": false}})";
  const char* const hybrid =
      R"({"d_model": 24, "n_layer": 3, "vocab_size": 61, "attn_layer_idx": [0], "d_intermediate": 150,
      "ssm_cfg": {"layer": "Mamba2", "headdim": 8, "d_state": 10, "rmsnorm": false},
      "attn_cfg": {"causal": true, "num_heads": 2, "qkv_proj_bias": false}})";
  for (
      const Case& t :
      {Case{
           mamba2,
           R"({"d_model": 24, "n_layer": 4, "vocab_size": 61, "ssm_cfg": {"layer": "Mamba2", "ngroups": 3, "headdim": 16,
                         "d_state": 16}})",
           9},
       Case{
           mamba2,
           R"({"d_model": 48, "n_layer": 2, "vocab_size": 61, "rms_norm": false, "ssm_cfg": {"layer": "Mamba2",
                         "headdim": 6, "d_state": 20, "ngroups": 8, "d_conv": 3, "D_has_hdim": true, "bias": true, "conv_bias": false}})",
           3},
       Case{
           hybrid,
           R"({"d_model": 24, "n_layer": 3, "vocab_size": 61, "attn_layer_idx": [0], "d_intermediate": 500,
                         "ssm_cfg": {"layer": "Mamba2", "headdim": 48, "d_state": 128},
                         "attn_cfg": {"causal": true, "num_heads": 2, "out_proj_bias": false}})",
           6}}) {
    SCOPED_TRACE(t.said);
    Layout layout;
    models::LanguageModel model(parse_config(t.written, "written", layout));
    model.params().allocate(nn::Purpose::inference, DType::f32);
    model.params().initialize(3);
    save_model(model, dir_, Layout::original, DType::f32);
    write_file(dir_ / "config.json", t.said);
    const LoadedModel back = load_model(dir_, {});
    EXPECT_EQ(back.notes.size(), t.notes) << fmt::format("{}", fmt::join(back.notes, "\n"));
    EXPECT_EQ(logits(*back.model), logits(model));
  }
}

// Where transformers writes other weights than its config says.
TEST_F(ModelFiles, T37_WhatTransformersWritesAgainstItsConfigIsUsed) {
  struct Case {
    const char *family, *key;
    Json said, written;
  };
  for (const Case& t : {Case{"zamba2", "num_mem_blocks", 1, 2},
                        Case{"zamba2", "use_shared_mlp_adapter", false, true},
                        Case{"nemotron_h", "attention_bias", true, false}}) {
    SCOPED_TRACE(t.family);
    const fs::path family =
        fs::path(KRAIT_SOURCE_DIR) / "tests/family" / fmt::format("{}.json", t.family);
    Json config = read_json(family);
    config[t.key] = t.written;
    Layout layout;
    models::LanguageModel model(parse_config(config.dump(), family, layout));
    model.params().allocate(nn::Purpose::inference, DType::f32);
    model.params().initialize(3);
    save_model(model, dir_, Layout::huggingface, DType::f32);
    config[t.key] = t.said;
    write_file(dir_ / "config.json", config.dump());
    const LoadedModel back = load_model(dir_, {});
    EXPECT_EQ(back.notes.size(), 1u);
    EXPECT_EQ(logits(*back.model), logits(model));
  }
}

TEST_F(ModelFiles, T11_AMissingOrMisshapenTensorIsAnErrorThatNamesIt) {
  const auto model = random_model();
  const auto message_with = [&](const std::function<void(std::vector<NamedTensor>&)>& change) {
    std::vector<NamedTensor> tensors;
    for (const nn::Param& p : model->params()) tensors.push_back({p.name, p.value.detach()});
    change(tensors);
    save_model(*model, dir_, Layout::huggingface, DType::f32);
    write_safetensors(dir_ / "model.safetensors", tensors);
    return testing::error_of([&] { load_model(dir_, {}); });
  };
  const std::string missing = message_with(
      [](auto& t) { std::erase_if(t, [](auto& n) { return n.name.ends_with("1.mixer.D"); }); });
  EXPECT_NE(missing.find("backbone.layers.1.mixer.D"), std::string::npos) << missing;
  // Those that sizes are read off, too: a layer is not dropped, nor are the biases of the others.
  for (const std::string name :
       {"backbone.layers.1.mixer.A_log", "backbone.layers.0.mixer.conv1d.bias"}) {
    const std::string message =
        message_with([&](auto& t) { std::erase_if(t, [&](auto& n) { return n.name == name; }); });
    EXPECT_NE(message.find("\"" + name + "\""), std::string::npos) << message;
    EXPECT_NE(message.find(" is missing"), std::string::npos) << message;
  }
  const std::string shape = message_with([](auto& t) {
    for (NamedTensor& n : t)
      if (n.name.ends_with("1.mixer.x_proj.weight")) n.view = n.view.slice(0, 0, 5);
  });
  EXPECT_NE(shape.find("x_proj.weight"), std::string::npos) << shape;
  EXPECT_NE(shape.find("(5, 48)"), std::string::npos) << shape;
}

TEST_F(ModelFiles, WhatIsNotAModelDirectoryIsSaidSo) {
  EXPECT_THROW(load_model(dir_ / "nowhere", {}), Error);
  EXPECT_THROW(load_model(dir_, {}), Error);
  write_file(dir_ / "config.json", R"({"d_model": 24, "n_layer": 2, "vocab_size": 61})");
  EXPECT_THROW(load_model(dir_, {}), Error);
}

}  // namespace
}  // namespace krait
