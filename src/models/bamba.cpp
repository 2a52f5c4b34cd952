// Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2 layers, attention with partial rotary positions in a
// few of them, a gated MLP behind each. Hugging Face layout.
#include <algorithm>

#include "krait/base/error.h"
#include "krait/models/mamba_keys.h"
#include "krait/models/rotary_keys.h"
#include "krait/models/transformer_keys.h"

namespace krait::models {

namespace {

struct Sizes : TransformerKeys {
  Sizes() { longest = 262144; }

  nn::Mamba2Config mamba;
  RotaryKeys rotary{10000, 0.5};
  std::vector<int64_t> attends;  // layers
};

class BambaBody : public Body {
 public:
  explicit BambaBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const Sizes& s = sizes_;
    nn::check(s.mamba);
    s.TransformerKeys::check();
    for (const int64_t i : s.attends) check_size("attn_layer_indices", i, 0, c.n_layer - 1);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}.", i);
    auto block = std::make_unique<nn::PreNorm>();
    const auto norm = [&](const char* which) { return make_norm(params, name + which, c); };
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
    const Sizes& s = sizes_;
    OrderedJson j = huggingface_json(c, layout, "Bamba", "BambaForCausalLM");
    write_transformer(j, s);
    j["attn_layer_indices"] = s.attends;
    write_biases(j, s);
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["rope_theta"] = s.rotary.base;
    j["partial_rotary_factor"] = s.rotary.fraction;
    j["rope_parameters"] = rotary_parameters(s.rotary);  // transformers looks for it only there
    write_mamba_keys(j, s.mamba);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

Sizes bamba_9b() {
  Sizes s;
  s.mlp.d_inner = 14336;
  s.attention.heads = 32;
  s.attention.key_heads = 8;
  return s;
}

Config finish(Config c, Sizes s) {
  c.architecture = kBamba.name;
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.final_layernorm";
  s.mamba.d_model = c.d_model;
  s.mamba.norm_eps = c.norm_eps;
  s.settle(c);
  nn::AttentionConfig& a = s.attention;
  a.head_dim = a.heads > 0 ? c.d_model / a.heads : 0;
  a.rotation = rotation_of(s.rotary, a.head_dim);
  c.body = std::make_shared<BambaBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "bamba";
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s = bamba_9b();
  expect_text(j, "hidden_act", "silu");
  c.vocab_size = 128000, c.d_model = 4096, c.n_layer = 32;
  c.norm_eps = 1e-5f, c.tie_embeddings = false;
  read_shell(j, c);
  s.attends = layer_list(j, "attn_layer_indices");
  read_transformer(j, s);
  read_biases(j, s);
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
  Sizes s = bamba_9b();
  s.attends = {9, 18, 27};
  s.mamba.d_ssm = 8192;
  return finish(c, s);
}

}  // namespace

const Architecture kBamba = {"bamba", claims, read,
                             [] { return std::vector<std::string>{"bamba-9b"}; }, preset_of};

}  // namespace krait::models
