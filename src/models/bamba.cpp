// Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2 layers, attention with partial rotary positions in a
// few of them, a gated MLP behind each. Hugging Face layout.
#include <algorithm>

#include "krait/base/error.h"
#include "krait/models/architecture.h"
#include "krait/models/mamba_keys.h"
#include "krait/models/rotary_keys.h"
#include "krait/nn/attention.h"
#include "krait/nn/mlp.h"

namespace krait::models {

namespace {

struct Sizes {
  nn::Mamba2Config mamba;
  nn::AttentionConfig attention;
  nn::MlpConfig mlp;
  RotaryKeys rotary{10000, 0.5};
  std::vector<int64_t> attends;  // layers
  double deviation = 0.02;       // of initial values
  int64_t longest = 262144;
};

class BambaBody : public Body {
 public:
  explicit BambaBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const Sizes& s = sizes_;
    nn::check(s.mamba);
    check_size("intermediate_size", s.mlp.d_inner, 1, 1 << 22);
    nn::check(s.attention);
    for (const int64_t i : s.attends) check_size("attn_layer_indices", i, 0, c.n_layer - 1);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}.", i);
    auto block = std::make_unique<nn::PreNorm>();
    const auto norm = [&](const char* which) {
      return nn::Norm::make(params, name + which, c.norm, c.d_model, c.norm_eps);
    };
    const nn::Norm first = norm("input_layernorm");
    const auto& at = sizes_.attends;
    if (std::find(at.begin(), at.end(), i) != at.end()) {
      block->add(first,
                 std::make_unique<nn::Attention>(params, name + "self_attn", sizes_.attention));
    } else {
      block->add(first, std::make_unique<nn::Mamba2>(params, name + "mamba", sizes_.mamba));
    }
    const nn::Norm second = norm("pre_ff_layernorm");
    block->add(second, std::make_unique<nn::Mlp>(params, name + "feed_forward", sizes_.mlp));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(layout == Layout::huggingface, "Bamba has the Hugging Face layout only");
    const Sizes& s = sizes_;
    OrderedJson j;
    j["architectures"] = OrderedJson::array({"BambaForCausalLM"});
    write_shell(j, c);
    j["intermediate_size"] = s.mlp.d_inner;
    j["attn_layer_indices"] = s.attends;
    j["num_attention_heads"] = s.attention.heads;
    j["num_key_value_heads"] = s.attention.key_heads;
    j["attention_bias"] = s.attention.qkv_bias;
    j["mlp_bias"] = s.mlp.bias;
    j["hidden_act"] = "silu";
    j["initializer_range"] = s.deviation;
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["max_position_embeddings"] = s.longest;
    j["rope_theta"] = s.rotary.base;
    j["partial_rotary_factor"] = s.rotary.fraction;
    write_mamba_keys(j, s.mamba);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

Config finish(Config c, Sizes s) {
  c.architecture = kBamba.name;
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.final_layernorm";
  s.mamba.d_model = s.attention.d_model = s.mlp.d_model = c.d_model;
  s.mamba.norm_eps = c.norm_eps;
  nn::AttentionConfig& a = s.attention;
  a.head_dim = a.heads > 0 ? c.d_model / a.heads : 0;
  a.out = "o_proj";
  a.rotation = rotation_of(s.rotary, a.head_dim);
  a.deviation = s.mlp.deviation = s.deviation;
  c.body = std::make_shared<BambaBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "bamba";
}

std::vector<int64_t> indices(const JsonView& j, const char* key) {
  std::vector<int64_t> found;
  if (const Json* list = j.find(key)) {
    if (!list->is_array()) j.wrong(key, "a list of layers");
    for (const Json& i : *list) {
      if (!i.is_number_integer()) j.wrong(key, "a list of layers");
      found.push_back(i.get<int64_t>());
    }
  }
  return found;
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  if (j.text("hidden_act", "silu") != "silu") j.wrong("hidden_act", "\"silu\"");
  c.vocab_size = 128000, c.d_model = 4096, c.n_layer = 32;
  c.norm_eps = 1e-5f, c.tie_embeddings = false;
  read_shell(j, c);
  s.deviation = j.number("initializer_range", s.deviation);
  s.longest = j.integer("max_position_embeddings", s.longest);
  s.attends = indices(j, "attn_layer_indices");
  s.mlp.d_inner = j.integer("intermediate_size", 14336);
  s.mlp.bias = j.boolean("mlp_bias", false);
  s.attention.heads = j.integer("num_attention_heads", 32);
  s.attention.key_heads = j.integer("num_key_value_heads", 8);
  s.attention.qkv_bias = s.attention.out_bias = j.boolean("attention_bias", false);
  s.rotary = rotary_keys(j, s.rotary);
  s.mamba = mamba_keys(j, c.d_model);
  return finish(c, s);
}

Config preset_of(const std::string&) {
  Config c;
  c.vocab_size = 128256;
  c.d_model = 4096;
  c.n_layer = 32;
  c.tie_embeddings = false;
  Sizes s;
  s.attends = {9, 18, 27};
  s.mlp.d_inner = 14336;
  s.attention.heads = 32;
  s.attention.key_heads = 8;
  s.mamba.d_ssm = 8192;
  return finish(c, s);
}

}  // namespace

const Architecture kBamba = {"bamba", claims, read,
                             [] { return std::vector<std::string>{"bamba-9b"}; }, preset_of};

}  // namespace krait::models
