// Llama (Touvron et al. 2023), with shared key heads, and Mistral (Jiang et al. 2023): the same with a
// sliding window. Hugging Face layout.
#include "krait/base/error.h"
#include "krait/models/rotary_keys.h"
#include "krait/models/transformer_keys.h"

namespace krait::models {

namespace {

class LlamaBody : public Body {
 public:
  explicit LlamaBody(const TransformerKeys& s) : sizes_(s) {}

  void check(const Config&) const override {
    sizes_.check();
    check_size("sliding_window", sizes_.attention.window, 0, 1 << 24);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}", i);
    const auto norm = [&](const char* which) { return make_norm(params, name + which, c); };
    auto block = std::make_unique<nn::PreNorm>();
    const nn::Norm first = norm(".input_layernorm");
    block->add(first,
               std::make_unique<nn::Attention>(params, name + ".self_attn", sizes_.attention));
    const nn::Norm second = norm(".post_attention_layernorm");
    block->add(second, std::make_unique<nn::Mlp>(params, name + ".mlp", sizes_.mlp));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    const nn::AttentionConfig& a = sizes_.attention;
    const bool mistral = a.window > 0;
    OrderedJson j =
        huggingface_json(c, layout, "Llama", mistral ? "MistralForCausalLM" : "LlamaForCausalLM");
    if (mistral) j["model_type"] = "mistral";
    write_transformer(j, sizes_);
    j["head_dim"] = a.head_dim;
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["rope_theta"] = a.rotation.base;
    write_scaling(j, a.rotation.scaling);
    if (mistral) {
      j["sliding_window"] = a.window;
    } else {
      write_biases(j, sizes_);
    }
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const TransformerKeys sizes_;
};

bool claims(const JsonView& j, Layout layout) {
  if (layout != Layout::huggingface) return false;
  const std::string type = j.text("model_type");
  return type == "llama" || type == "mistral";
}

Config read(const JsonView& j, Layout) {
  Config c;
  expect_text(j, "hidden_act", "silu");
  c.architecture = kLlama.name;
  c.vocab_size = j.integer("vocab_size");
  c.d_model = j.integer("hidden_size");
  c.n_layer = j.integer("num_hidden_layers");
  c.norm_eps = static_cast<float>(j.number("rms_norm_eps", 1e-6));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.norm";
  TransformerKeys s;
  nn::AttentionConfig& a = s.attention;
  read_transformer(j, s);
  a.head_dim = j.integer("head_dim", a.heads > 0 ? c.d_model / a.heads : 0);
  const RotaryKeys turns = rotary_keys(j, {});
  a.rotation = {a.head_dim, turns.base, false, turns.scaling};
  if (j.text("model_type") == "mistral") {
    // A null there: none. transformers takes 4096 where the key is missing.
    a.window = j.integer("sliding_window", j.json().contains("sliding_window") ? 0 : 4096);
  } else {
    read_biases(j, s);  // Mistral has none, whatever its config says
  }
  s.settle(c);
  c.body = std::make_shared<LlamaBody>(s);
  return c;
}

std::vector<std::string> presets() { return {}; }
Config preset_of(const std::string& name) { fail("no preset is named \"{}\"", name); }

}  // namespace

const Architecture kLlama = {"llama", claims, read, presets, preset_of};

}  // namespace krait::models
