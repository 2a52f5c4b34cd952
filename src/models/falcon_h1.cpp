// Falcon-H1 (TII 2025): attention and Mamba-2 side by side on one normed stream, a gated MLP behind them, and the
// constant multipliers of muP nearly everywhere. Hugging Face layout.
#include <algorithm>
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/mamba_keys.h"
#include "krait/models/presets.h"
#include "krait/models/rotary_keys.h"
#include "krait/models/transformer_keys.h"

namespace krait::models {

namespace {

struct Sizes : TransformerKeys {
  Sizes() { longest = 8192; }

  nn::Mamba2Config mamba;
  float key_factor = 1;  // of keys, that is of scores
};

class FalconBody : public Body {
 public:
  explicit FalconBody(const Sizes& s) : sizes_(s) {}

  void check(const Config&) const override {
    nn::check(sizes_.mamba);
    sizes_.TransformerKeys::check();
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}.", i);
    auto block = std::make_unique<nn::PreNorm>();
    const auto norm = [&](const char* which) { return make_norm(params, name + which, c); };
    block->add(norm("input_layernorm"),
               std::make_unique<nn::Mamba2>(params, name + "mamba", sizes_.mamba));
    block->add_beside(
        std::make_unique<nn::Attention>(params, name + "self_attn", sizes_.attention));
    block->add(norm("pre_ff_layernorm"),
               std::make_unique<nn::Mlp>(params, name + "feed_forward", sizes_.mlp));
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    const Sizes& s = sizes_;
    OrderedJson j = huggingface_json(c, layout, "Falcon-H1", "FalconH1ForCausalLM");
    write_transformer(j, s);
    j["head_dim"] = s.attention.head_dim;
    write_biases(j, s);
    j["projectors_bias"] = s.mamba.out_bias;
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["rope_theta"] = s.attention.rotation.base;
    write_scaling(j, s.attention.rotation.scaling);
    write_mamba_keys(j, s.mamba);
    j["mamba_d_ssm"] = s.mamba.d_ssm;
    j["mamba_expand"] = 2;  // says nothing beside mamba_d_ssm, but must be a whole number
    j["mamba_rms_norm"] = s.mamba.norm;
    j["mamba_norm_before_gate"] = s.mamba.norm_before_gate;
    j["embedding_multiplier"] = shortest(c.embedding_factor);
    j["lm_head_multiplier"] = shortest(c.head_factor);
    j["key_multiplier"] = shortest(s.key_factor);
    j["attention_in_multiplier"] = shortest(s.attention.in_factor);
    j["attention_out_multiplier"] = shortest(s.attention.out_factor);
    j["ssm_in_multiplier"] = shortest(s.mamba.in_factor);
    j["ssm_out_multiplier"] = shortest(s.mamba.out_factor);
    for (const float f : s.mamba.zxBCdt_factors) j["ssm_multipliers"].push_back(shortest(f));
    j["mlp_multipliers"] =
        OrderedJson::array({shortest(s.mlp.gate_factor), shortest(s.mlp.out_factor)});
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

Config finish(Config c, Sizes s) {
  c.architecture = kFalconH1.name;
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.final_layernorm";
  s.mamba.d_model = c.d_model;
  s.mamba.norm_eps = c.norm_eps;
  s.settle(c);
  nn::AttentionConfig& a = s.attention;
  a.rotation.R = a.head_dim;
  a.scale = s.key_factor / std::sqrt(static_cast<float>(std::max<int64_t>(1, a.head_dim)));
  c.body = std::make_shared<FalconBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "falcon_h1";
}

void read_factors(const JsonView& j, Config& c, Sizes& s) {
  const auto factor = [&](const char* key) { return static_cast<float>(j.number(key, 1)); };
  c.embedding_factor = factor("embedding_multiplier");
  c.head_factor = factor("lm_head_multiplier");
  s.key_factor = factor("key_multiplier");
  if (!(s.key_factor > 0)) j.wrong("key_multiplier", "a positive number");
  s.attention.in_factor = factor("attention_in_multiplier");
  s.attention.out_factor = factor("attention_out_multiplier");
  s.mamba.in_factor = factor("ssm_in_multiplier");
  s.mamba.out_factor = factor("ssm_out_multiplier");
  const std::vector<double> ssm = numbers(j, "ssm_multipliers", {1, 1, 1, 1, 1}),
                            mlp = numbers(j, "mlp_multipliers", {1, 1});
  for (size_t i = 0; i < ssm.size(); ++i) s.mamba.zxBCdt_factors[i] = static_cast<float>(ssm[i]);
  s.mlp.gate_factor = static_cast<float>(mlp[0]);
  s.mlp.out_factor = static_cast<float>(mlp[1]);
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  expect_text(j, "hidden_act", "silu");
  c.vocab_size = 128000, c.d_model = 4096, c.n_layer = 32;
  c.norm_eps = 1e-5f, c.tie_embeddings = false;
  read_shell(j, c);
  nn::AttentionConfig& a = s.attention;
  s.mlp.d_inner = 14336, a.heads = 32, a.key_heads = 8;
  read_transformer(j, s);
  read_biases(j, s);
  a.head_dim = j.integer("head_dim", a.heads > 0 ? c.d_model / a.heads : 0);
  const RotaryKeys turns = rotary_keys(j, {100000, 1});
  a.rotation.base = turns.base, a.rotation.scaling = turns.scaling;
  s.mamba = mamba_keys(j, c.d_model);
  s.mamba.out_bias = j.boolean("projectors_bias", false);
  s.mamba.norm = j.boolean("mamba_rms_norm", false);
  s.mamba.norm_before_gate = j.boolean("mamba_norm_before_gate", true);
  read_factors(j, c, s);
  return finish(c, s);
}

// As published. The multipliers follow from the width, by muP.
struct Preset {
  const char* name;
  int64_t d_model, n_layer, d_inner, vocab_size, longest;
  int64_t heads, key_heads, head_dim;
  int64_t mamba_heads, headdim, d_state, groups;
  bool norm;
  double head, key, attention_out, ssm_in, ssm_out, B, gate, down;
};

// clang-format off
constexpr Preset kPresets[] = {
    {"falcon-h1-0.5b", 1024, 36, 2048, 32784, 16384, 8, 2, 64, 24, 64, 128, 1,
     false, 0.0390625, 0.390625, 0.9375, 1.25, 0.23570226, 0.35355339, 0.88388348, 0.5859375},
    {"falcon-h1-1.5b-deep", 1280, 66, 3072, 65537, 131072, 6, 2, 128, 24, 64, 256, 1,
     true, 0.03125, 0.1767767, 0.5, 1, 0.23570226, 0.1767767, 0.70710678, 0.3125},
    {"falcon-h1-7b", 3072, 44, 12288, 130049, 262144, 12, 2, 128, 24, 128, 256, 1,
     true, 0.0130208333, 0.0306903985, 0.104166667, 0.416666667, 0.11785113, 0.1767767, 0.294627825, 0.0325520833},
    {"falcon-h1-34b", 5120, 72, 21504, 261120, 262144, 20, 4, 128, 32, 128, 256, 2,
     true, 0.0078125, 0.0110485435, 0.0375, 0.25, 0.0883883476, 0.1767767, 0.176776695, 0.0111607143},
};
// clang-format on

std::vector<std::string> presets() { return names_of(kPresets); }

Config sized(const Preset& p) {
  Config c;
  c.d_model = p.d_model;
  c.n_layer = p.n_layer;
  c.vocab_size = p.vocab_size;
  c.tie_embeddings = false;
  c.embedding_factor = 5.65685425f;
  c.head_factor = static_cast<float>(p.head);
  Sizes s;
  s.longest = p.longest;
  s.key_factor = static_cast<float>(p.key);
  s.attention.heads = p.heads;
  s.attention.key_heads = p.key_heads;
  s.attention.head_dim = p.head_dim;
  s.attention.rotation.base = 1e11;
  s.attention.out_factor = static_cast<float>(p.attention_out);
  s.mamba.headdim = p.headdim;
  s.mamba.d_ssm = p.mamba_heads * p.headdim;
  s.mamba.d_state = p.d_state;
  s.mamba.groups = p.groups;
  s.mamba.norm = p.norm;
  s.mamba.in_factor = static_cast<float>(p.ssm_in);
  s.mamba.out_factor = static_cast<float>(p.ssm_out);
  s.mamba.zxBCdt_factors = {0.35355339f, 0.25f, static_cast<float>(p.B), 0.5f, 0.35355339f};
  s.mlp.d_inner = p.d_inner;
  s.mlp.gate_factor = static_cast<float>(p.gate);
  s.mlp.out_factor = static_cast<float>(p.down);
  return finish(c, s);
}

Config preset_of(const std::string& name) { return sized(named(kPresets, name)); }

}  // namespace

const Architecture kFalconH1 = {"falcon_h1", claims, read, presets, preset_of};

}  // namespace krait::models
