// Jamba (Lieber et al. 2024): Mamba-1 layers with norms of dt, B and C, attention without positions in every
// attn_layer_period-th, and experts in place of the MLP in every expert_layer_period-th. Hugging Face layout.
#include "krait/base/error.h"
#include "krait/models/mamba1.h"
#include "krait/models/transformer_keys.h"
#include "krait/nn/mamba1.h"
#include "krait/nn/moe.h"

namespace krait::models {

namespace {

// Layers i with i mod period == offset.
struct Every {
  int64_t period = 1, offset = 0;
  bool operator()(int64_t i) const { return i % period == offset; }
};

struct Sizes : TransformerKeys {
  Sizes() { longest = 262144; }

  nn::Mamba1Config mamba;
  nn::MoeConfig moe;
  Every attends, routes;
  double balance = 0.001;  // "router_aux_loss_coef", in use where output_router_logits says so
  bool balanced = false;
};

class JambaBody : public Body {
 public:
  explicit JambaBody(const Sizes& s) : sizes_(s) {}

  void check(const Config&) const override {
    const Sizes& s = sizes_;
    check_size("mamba_d_state", s.mamba.d_state, 1, 256);
    check_size("mamba_d_conv", s.mamba.d_conv, 2, 8);
    check_size("mamba_dt_rank", s.mamba.dt_rank, 1, 1 << 20);
    check_size("mamba_expand", s.mamba.d_inner, 1, 1 << 22);
    s.TransformerKeys::check();
    check_size("num_experts", s.moe.n_experts, 1, 1 << 12);
    check_size("num_experts_per_tok", s.moe.k, 1, s.moe.n_experts);
    for (const Every& e : {s.attends, s.routes}) {
      check_size("layer period", e.period, 1, 1 << 14);
      check_size("layer offset", e.offset, 0, e.period - 1);
    }
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("model.layers.{}.", i);
    auto block = std::make_unique<nn::PreNorm>();
    const auto norm = [&](const char* which) { return make_norm(params, name + which, c); };
    const nn::Norm first = norm("input_layernorm");
    if (sizes_.attends(i)) {
      block->add(first,
                 std::make_unique<nn::Attention>(params, name + "self_attn", sizes_.attention));
    } else {
      block->add(first, std::make_unique<nn::Mamba1>(params, name + "mamba", sizes_.mamba));
    }
    const nn::Norm second = norm("pre_ff_layernorm");
    if (sizes_.routes(i) && sizes_.moe.n_experts > 1) {
      block->add(second, std::make_unique<nn::Moe>(params, name + "feed_forward", sizes_.moe));
    } else {
      block->add(second, std::make_unique<nn::Mlp>(params, name + "feed_forward", sizes_.mlp));
    }
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    const Sizes& s = sizes_;
    OrderedJson j = huggingface_json(c, layout, "Jamba", "JambaForCausalLM");
    write_transformer(j, s);
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = shortest(c.norm_eps);
    j["attn_layer_period"] = s.attends.period;
    j["attn_layer_offset"] = s.attends.offset;
    j["expert_layer_period"] = s.routes.period;
    j["expert_layer_offset"] = s.routes.offset;
    j["num_experts"] = s.moe.n_experts;
    j["num_experts_per_tok"] = s.moe.k;
    j["output_router_logits"] = s.balanced;
    j["router_aux_loss_coef"] = s.balance;
    j["mamba_d_state"] = s.mamba.d_state;
    j["mamba_d_conv"] = s.mamba.d_conv;
    j["mamba_expand"] = s.mamba.d_inner / c.d_model;
    j["mamba_dt_rank"] = s.mamba.dt_rank;
    j["mamba_conv_bias"] = s.mamba.conv_bias;
    j["mamba_proj_bias"] = s.mamba.proj_bias;
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const Sizes sizes_;
};

// What follows from the sizes read.
Config finish(Config c, Sizes s) {
  c.architecture = kJamba.name;
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.final_layernorm";
  s.mamba.d_model = s.moe.d_model = c.d_model;
  s.mamba.inner_norm = nn::InnerNorm::learned;
  s.mamba.inner_eps = c.norm_eps;
  s.settle(c);
  s.attention.head_dim = s.attention.heads > 0 ? c.d_model / s.attention.heads : 0;
  s.moe.init = nn::normal(s.deviation);
  s.moe.d_inner = s.mlp.d_inner;
  s.moe.balance = s.balanced ? static_cast<float>(s.balance) : 0;
  c.body = std::make_shared<JambaBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "jamba";
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  expect_text(j, "hidden_act", "silu");
  c.vocab_size = 65536, c.d_model = 4096, c.n_layer = 32;
  c.norm_eps = 1e-6f, c.tie_embeddings = false;
  read_shell(j, c);
  s.mlp.d_inner = 14336, s.attention.heads = 32, s.attention.key_heads = 8;
  read_transformer(j, s);
  s.attends = {j.integer("attn_layer_period", 8), j.integer("attn_layer_offset", 4)};
  s.routes = {j.integer("expert_layer_period", 2), j.integer("expert_layer_offset", 1)};
  s.moe.n_experts = j.integer("num_experts", 16);
  s.moe.k = j.integer("num_experts_per_tok", 2);
  s.balance = j.number("router_aux_loss_coef", s.balance);
  s.balanced = j.boolean("output_router_logits", false);
  nn::Mamba1Config& m = s.mamba;
  m.dt_rank = read_dt_rank(j, "mamba_dt_rank", c.d_model);
  m.d_state = j.integer("mamba_d_state", 16);
  m.d_conv = j.integer("mamba_d_conv", 4);
  m.d_inner = j.integer("mamba_expand", 2) * c.d_model;
  m.conv_bias = j.boolean("mamba_conv_bias", true);
  m.proj_bias = j.boolean("mamba_proj_bias", false);
  return finish(c, s);
}

// The published ones: the paper's, and Jamba-1.5 (Team et al. 2024) Mini, of the same sizes, and Large.
std::vector<std::string> presets() { return {"jamba-v0.1", "jamba-1.5-large"}; }

Config preset_of(const std::string& name) {
  const bool large = name == "jamba-1.5-large";
  Config c;
  c.vocab_size = 65536;
  c.d_model = large ? 8192 : 4096;
  c.n_layer = large ? 72 : 32;
  c.norm_eps = 1e-6f;
  c.tie_embeddings = false;
  c.eos_ids = {2};
  Sizes s;
  s.mlp.d_inner = large ? 24576 : 14336;
  s.attention.heads = large ? 64 : 32;
  s.attention.key_heads = 8;
  s.attends = {8, 4};
  s.routes = {2, 1};
  s.moe.n_experts = 16;
  s.moe.k = 2;
  s.mamba.d_inner = 2 * c.d_model;
  s.mamba.dt_rank = c.d_model / 16;
  return finish(c, s);
}

}  // namespace

const Architecture kJamba = {"jamba", claims, read, presets, preset_of};

}  // namespace krait::models
