// Nemotron-H (NVIDIA 2025): a string says what each layer is: M Mamba-2, * attention without positions, - an
// MLP with a squared ReLU. Hugging Face layout.
#include "krait/base/error.h"
#include "krait/models/mamba2.h"
#include "krait/models/transformer_keys.h"

namespace krait::models {

namespace {

struct Sizes : TransformerKeys {
  Sizes() { longest = 4096; }

  nn::Mamba2Config mamba;
  std::string pattern;
};

class NemotronBody : public Body {
 public:
  explicit NemotronBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const Sizes& s = sizes_;
    nn::check(s.mamba);
    s.TransformerKeys::check();
    require(s.pattern.find_first_not_of("M*-") == std::string::npos &&
                static_cast<int64_t>(s.pattern.size()) == c.n_layer,
            "config: hybrid_override_pattern: expected {} of M, * and -, got \"{}\"", c.n_layer,
            s.pattern);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("backbone.layers.{}.", i);
    auto block = std::make_unique<nn::PreNorm>();
    const nn::Norm norm = make_norm(params, name + "norm", c);
    block->add(norm, mixer(params, name + "mixer", sizes_.pattern[static_cast<size_t>(i)]));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    const Sizes& s = sizes_;
    OrderedJson j = huggingface_json(c, layout, "Nemotron-H", "NemotronHForCausalLM");
    write_transformer(j, s);
    j["hybrid_override_pattern"] = s.pattern;
    j["head_dim"] = s.attention.head_dim;
    write_biases(j, s);
    j["mlp_hidden_act"] = "relu2";
    j["mamba_hidden_act"] = "silu";
    j["layer_norm_epsilon"] = shortest(c.norm_eps);
    j["mamba_num_heads"] = s.mamba.heads();
    j["mamba_head_dim"] = s.mamba.headdim;
    j["ssm_state_size"] = s.mamba.d_state;
    j["n_groups"] = s.mamba.groups;
    j["conv_kernel"] = s.mamba.d_conv;
    j["use_conv_bias"] = s.mamba.conv_bias;
    j["use_bias"] = s.mamba.in_bias;
    j["time_step_limit"] = dt_limits(s.mamba);
    j["residual_in_fp32"] = true;
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

  const Sizes& sizes() const { return sizes_; }

 private:
  std::unique_ptr<nn::Mixer> mixer(nn::ParamSet& params, const std::string& name, char kind) const {
    if (kind == 'M') return std::make_unique<nn::Mamba2>(params, name, sizes_.mamba);
    if (kind == '*') return std::make_unique<nn::Attention>(params, name, sizes_.attention);
    return std::make_unique<nn::Mlp>(params, name, sizes_.mlp);
  }

  const Sizes sizes_;
};

Config finish(Config c, Sizes s) {
  c.architecture = kNemotronH.name;
  c.embedding = {"backbone.embeddings.weight", ""};
  s.mamba.d_model = c.d_model;
  s.mamba.norm_eps = c.norm_eps;
  s.settle(c);
  s.mlp.layout = nn::MlpLayout::plain;
  s.mlp.gate_kind = ops::Gate::relu2;
  c.body = std::make_shared<NemotronBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "nemotron_h";
}

// "hybrid_override_pattern", or "layers_block_type", the list of names that newer files have in its place.
std::string pattern_of(const JsonView& j) {
  if (j.has("hybrid_override_pattern") || !j.has("layers_block_type"))
    return j.text("hybrid_override_pattern");
  const Json& kinds = j.at("layers_block_type");
  if (!kinds.is_array()) j.wrong("layers_block_type", "a list of names");
  std::string pattern;
  for (const Json& kind : kinds) {
    if (kind == "linear_attention" || kind == "mamba") {  // the newer and the older name
      pattern += 'M';
    } else if (kind == "full_attention" || kind == "attention") {
      pattern += '*';
    } else if (kind == "mlp") {
      pattern += '-';
    } else {
      j.wrong("layers_block_type", "names \"linear_attention\", \"full_attention\" and \"mlp\"");
    }
  }
  return pattern;
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  expect_text(j, "mlp_hidden_act", "relu2");
  expect_text(j, "mamba_hidden_act", "silu");
  c.vocab_size = j.integer("vocab_size", 131072);
  c.d_model = j.integer("hidden_size", 4096);
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  s.pattern = pattern_of(j);
  c.n_layer = j.integer("num_hidden_layers", static_cast<int64_t>(s.pattern.size()));
  s.mlp.d_inner = 21504, s.attention.heads = 32, s.attention.key_heads = 8;
  read_transformer(j, s);
  read_biases(j, s);
  s.attention.head_dim = j.integer("head_dim", 128);
  nn::Mamba2Config& m = s.mamba;
  const int64_t heads = j.integer("mamba_num_heads", 128);
  m.headdim = j.integer("mamba_head_dim", 64);
  check_size("mamba_num_heads", heads, 1, 1 << 20);
  check_size("mamba_head_dim", m.headdim, 1, 1 << 20);
  m.d_ssm = heads * m.headdim;
  m.d_state = j.integer("ssm_state_size", 128);
  m.groups = j.integer("n_groups", 8);
  m.d_conv = j.integer("conv_kernel", 4);
  m.conv_bias = j.boolean("use_conv_bias", true);
  m.in_bias = m.out_bias = j.boolean("use_bias", false);  // "mamba_proj_bias" has no effect there
  read_dt_limits(j, "time_step_limit", m);
  return finish(c, s);
}

// transformers' class has no biases in attention whatever "attention_bias" says, NVIDIA's own has.
void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  Sizes s = static_cast<const NemotronBody&>(*c.body).sizes();
  const size_t i = s.pattern.find('*');
  if (i == std::string::npos) return;
  const bool bias = shape_of(fmt::format("backbone.layers.{}.mixer.q_proj.bias", i)) != nullptr;
  follow_weights("attention_bias", s.attention.qkv_bias, bias, notes);
  s.attention.out_bias = bias;
  c.body = std::make_shared<NemotronBody>(s);
}

Config preset_of(const std::string&) {
  Config c;
  c.vocab_size = 131072;
  c.d_model = 4096;
  c.n_layer = 52;
  c.tie_embeddings = false;
  Sizes s;
  s.pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-";
  s.longest = 8192;
  s.mlp.d_inner = 21504;
  s.attention.heads = 32;
  s.attention.key_heads = 8;
  s.attention.head_dim = 128;
  s.mamba.d_ssm = 8192;
  s.mamba.groups = 8;
  return finish(c, s);
}

}  // namespace

const Architecture kNemotronH = {
    "nemotron_h", claims, read, [] { return std::vector<std::string>{"nemotron-h-8b"}; },
    preset_of,    follow};

}  // namespace krait::models
