// GPT-NeoX (Black et al. 2022), the Pythia models (Biderman et al. 2023) among them: attention and MLP side by
// side on one stream, a part of each head rotated, layer norms and biases. Hugging Face layout.
#include <array>

#include "krait/base/error.h"
#include "krait/models/presets.h"
#include "krait/models/rotary_keys.h"
#include "krait/nn/attention.h"
#include "krait/nn/mlp.h"

namespace krait::models {

namespace {

struct Sizes {
  nn::AttentionConfig attention;
  nn::MlpConfig mlp;
  bool parallel = true;
  RotaryKeys rotary{10000, 0.25};
  double deviation = 0.02;  // of initial values
  int64_t longest = 2048;   // "max_position_embeddings": kept, not enforced
};

class GptNeoxBody : public Body {
 public:
  explicit GptNeoxBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const nn::AttentionConfig& a = sizes_.attention;
    check_size("intermediate_size", sizes_.mlp.d_inner, 1, 1 << 22);
    check_size("num_attention_heads", a.heads, 1, 512);
    require(c.d_model % a.heads == 0,
            "config: num_attention_heads: expected a divisor of {}, got {}", c.d_model, a.heads);
    nn::check(a);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("gpt_neox.layers.{}", i);
    nn::AttentionConfig a = sizes_.attention;
    nn::MlpConfig m = sizes_.mlp;
    a.d_model = m.d_model = c.d_model;
    a.deviation = m.deviation = sizes_.deviation;
    a.layout = nn::QkvLayout::heads;
    a.qkv = "query_key_value";
    a.out = "dense";
    m.layout = nn::MlpLayout::plain;
    m.bias = true;
    m.up = "dense_h_to_4h";
    m.down = "dense_4h_to_h";
    const auto norm = [&](const char* which) { return make_norm(params, name + which, c); };
    auto block = std::make_unique<nn::PreNorm>(sizes_.parallel);
    const nn::Norm first = norm(".input_layernorm");
    const nn::Norm second = norm(".post_attention_layernorm");
    block->add(first, std::make_unique<nn::Attention>(params, name + ".attention", a));
    block->add(second, std::make_unique<nn::Mlp>(params, name + ".mlp", m));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    const nn::AttentionConfig& a = sizes_.attention;
    OrderedJson j = huggingface_json(c, layout, "GPT-NeoX", "GPTNeoXForCausalLM");
    j["intermediate_size"] = sizes_.mlp.d_inner;
    j["num_attention_heads"] = a.heads;
    j["attention_bias"] = a.qkv_bias;
    j["hidden_act"] = sizes_.mlp.gate_kind == ops::Gate::gelu ? "gelu" : "gelu_new";
    j["rotary_pct"] = sizes_.rotary.fraction;
    j["rotary_emb_base"] = sizes_.rotary.base;
    write_scaling(j, sizes_.rotary.scaling);
    j["use_parallel_residual"] = sizes_.parallel;
    j["max_position_embeddings"] = sizes_.longest;
    j["initializer_range"] = sizes_.deviation;
    j["layer_norm_eps"] = shortest(c.norm_eps);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "gpt_neox";
}

Config with_sizes(Config c, Sizes s) {
  c.architecture = kGptNeox.name;
  c.norm = ops::NormKind::layer;
  c.embedding = {"gpt_neox.embed_in.weight", ""};
  c.norm_f = "gpt_neox.final_layer_norm";
  c.head = {"embed_out.weight", ""};
  nn::AttentionConfig& a = s.attention;
  a.key_heads = a.heads;
  a.head_dim = a.heads > 0 ? c.d_model / a.heads : 0;
  a.rotation = rotation_of(s.rotary, a.head_dim);
  c.body = std::make_shared<GptNeoxBody>(s);
  return c;
}

ops::Gate activation(const JsonView& j) {
  const std::string name = j.text("hidden_act", "gelu");
  if (name == "gelu") return ops::Gate::gelu;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh")
    return ops::Gate::gelu_tanh;
  j.wrong("hidden_act", "\"gelu\" or \"gelu_new\"");
}

Config read(const JsonView& j, Layout) {
  Config c;
  c.vocab_size = j.integer("vocab_size", 50432);
  c.d_model = j.integer("hidden_size", 6144);
  c.n_layer = j.integer("num_hidden_layers", 44);
  c.norm_eps = static_cast<float>(j.number("layer_norm_eps", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  Sizes s;
  s.rotary = rotary_keys(j, s.rotary);
  s.attention.heads = j.integer("num_attention_heads", 64);
  s.attention.qkv_bias = s.attention.out_bias = j.boolean("attention_bias", true);
  s.mlp.d_inner = j.integer("intermediate_size", 24576);
  s.mlp.gate_kind = activation(j);
  s.parallel = j.boolean("use_parallel_residual", true);
  s.deviation = j.number("initializer_range", s.deviation);
  s.longest = j.integer("max_position_embeddings", s.longest);
  return with_sizes(c, s);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, heads, vocab_size;
};

// Pythia, whose tokenizer and data are those of the Mamba models.
constexpr std::array kPresets = {
    Preset{"pythia-70m", 512, 6, 8, 50304},     Preset{"pythia-160m", 768, 12, 12, 50304},
    Preset{"pythia-410m", 1024, 24, 16, 50304}, Preset{"pythia-1b", 2048, 16, 8, 50304},
    Preset{"pythia-1.4b", 2048, 24, 16, 50304}, Preset{"pythia-2.8b", 2560, 32, 32, 50304},
    Preset{"pythia-6.9b", 4096, 32, 32, 50432}, Preset{"pythia-12b", 5120, 36, 40, 50688},
};

std::vector<std::string> presets() { return names_of(kPresets); }

Config preset_of(const std::string& name) {
  const Preset& p = named(kPresets, name);
  Config c;
  c.d_model = p.d_model;
  c.n_layer = p.n_layer;
  c.vocab_size = p.vocab_size;
  c.tie_embeddings = false;
  c.eos_ids = {0};
  Sizes s;
  s.attention.heads = p.heads;
  s.attention.qkv_bias = s.attention.out_bias = true;
  s.mlp.d_inner = 4 * p.d_model;
  s.mlp.gate_kind = ops::Gate::gelu;
  return with_sizes(c, s);
}

}  // namespace

const Architecture kGptNeox = {"gpt_neox", claims, read, presets, preset_of};

}  // namespace krait::models
