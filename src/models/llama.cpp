// Llama (Touvron et al. 2023), with shared key heads, and Mistral (Jiang et al. 2023): the same with a
// sliding window. Hugging Face layout.
#include "krait/base/error.h"
#include "krait/models/rotary_keys.h"
#include "krait/nn/attention.h"
#include "krait/nn/mlp.h"

namespace krait::models {

namespace {

struct Sizes {
  nn::AttentionConfig attention;
  nn::MlpConfig mlp;
  double deviation = 0.02;  // of initial values
  int64_t longest = 2048;   // "max_position_embeddings": kept, not enforced
};

class LlamaBody : public Body {
 public:
  explicit LlamaBody(const Sizes& s) : sizes_(s) {}

  void check(const Config&) const override {
    const nn::AttentionConfig& a = sizes_.attention;
    check_size("intermediate_size", sizes_.mlp.d_inner, 1, 1 << 22);
    nn::check(a);
    check_size("sliding_window", a.window, 0, 1 << 24);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}", i);
    nn::AttentionConfig a = sizes_.attention;
    nn::MlpConfig m = sizes_.mlp;
    a.d_model = m.d_model = c.d_model;
    a.deviation = m.deviation = sizes_.deviation;
    a.out = "o_proj";
    const auto norm = [&](const char* which) {
      return nn::Norm::make(params, name + which, c.norm, c.d_model, c.norm_eps);
    };
    auto block = std::make_unique<nn::PreNorm>();
    const nn::Norm first = norm(".input_layernorm");
    block->add(first, std::make_unique<nn::Attention>(params, name + ".self_attn", a));
    const nn::Norm second = norm(".post_attention_layernorm");
    block->add(second, std::make_unique<nn::Mlp>(params, name + ".mlp", m));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(layout == Layout::huggingface, "Llama has the Hugging Face layout only");
    const nn::AttentionConfig& a = sizes_.attention;
    const bool mistral = a.window > 0;
    OrderedJson j;
    j["architectures"] = OrderedJson::array({mistral ? "MistralForCausalLM" : "LlamaForCausalLM"});
    write_shell(j, c);
    if (mistral) j["model_type"] = "mistral";
    j["intermediate_size"] = sizes_.mlp.d_inner;
    j["num_attention_heads"] = a.heads;
    j["num_key_value_heads"] = a.key_heads;
    j["head_dim"] = a.head_dim;
    j["hidden_act"] = "silu";
    j["max_position_embeddings"] = sizes_.longest;
    j["initializer_range"] = sizes_.deviation;
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["rope_theta"] = a.rotation.base;
    if (mistral) {
      j["sliding_window"] = a.window;
    } else {
      j["attention_bias"] = a.qkv_bias;
      j["mlp_bias"] = sizes_.mlp.bias;
    }
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

bool claims(const JsonView& j, Layout layout) {
  if (layout != Layout::huggingface) return false;
  const std::string type = j.text("model_type");
  return type == "llama" || type == "mistral";
}

Config read(const JsonView& j, Layout) {
  Config c;
  if (j.text("hidden_act", "silu") != "silu") j.wrong("hidden_act", "\"silu\"");
  c.architecture = kLlama.name;
  c.vocab_size = j.integer("vocab_size");
  c.d_model = j.integer("hidden_size");
  c.n_layer = j.integer("num_hidden_layers");
  c.norm_eps = static_cast<float>(j.number("rms_norm_eps", 1e-6));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.norm";
  Sizes s;
  nn::AttentionConfig& a = s.attention;
  a.heads = j.integer("num_attention_heads");
  a.key_heads = j.integer("num_key_value_heads", a.heads);
  a.head_dim = j.integer("head_dim", a.heads > 0 ? c.d_model / a.heads : 0);
  a.rotation = {a.head_dim, rotary_keys(j, {}).base, false};
  a.qkv_bias = a.out_bias = j.boolean("attention_bias", false);
  if (j.text("model_type") == "mistral") a.window = j.integer("sliding_window", 0);
  s.mlp.d_inner = j.integer("intermediate_size");
  s.mlp.bias = j.boolean("mlp_bias", false);
  s.deviation = j.number("initializer_range", s.deviation);
  s.longest = j.integer("max_position_embeddings", s.longest);
  c.body = std::make_shared<LlamaBody>(s);
  return c;
}

std::vector<std::string> presets() { return {}; }
Config preset_of(const std::string& name) { fail("no preset is named \"{}\"", name); }

}  // namespace

const Architecture kLlama = {"llama", claims, read, presets, preset_of};

}  // namespace krait::models
