// MoE-Mamba (Pióro et al. 2024): each layer is a Mamba-1 mixer and a Switch layer of experts, both behind a
// layer norm; learned positions, no last norm, untied head. The original layout is that of llm-random: the
// arguments of its training script as config.json beside its checkpoint.
#include <array>

#include "krait/base/error.h"
#include "krait/models/architecture.h"
#include "krait/nn/mamba1.h"
#include "krait/nn/moe.h"

namespace krait::models {

namespace {

struct MoeMambaBody : Body {
  nn::Mamba1Config mamba;
  nn::MoeConfig moe;

  void check(const Config& c) const override {
    check_size("positions", c.positions, 0, 1 << 30);
    check_size("d_inner", mamba.d_inner, 1, 1 << 22);
    check_size("d_state", mamba.d_state, 1, 256);
    check_size("dt_rank", mamba.dt_rank, 1, 1 << 20);
    check_size("d_conv", mamba.d_conv, 2, 8);
    check_size("experts", moe.n_experts, 1, 1 << 16);
    check_size("experts a token", moe.k, 1, moe.n_experts);
    check_size("width of an expert", moe.d_inner, 1, 1 << 22);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    const std::string name = fmt::format("backbone.layers.{}", i);
    const size_t before = params.size();
    auto block = std::make_unique<nn::PreNorm>();
    const auto norm = [&](const char* part) { return make_norm(params, name + part, c); };
    const nn::Norm first = norm(".norm");
    block->add(first, std::make_unique<nn::Mamba1>(params, name + ".mixer", mamba));
    const nn::Norm second = norm(".norm2");
    block->add(second, std::make_unique<nn::Moe>(params, name + ".moe", moe));
    for (auto p = params.begin() + static_cast<std::ptrdiff_t>(before); p != params.end(); ++p)
      p->original = original_name(p->name.substr(name.size()), i);
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    return layout == Layout::huggingface ? own(c) : original(c);
  }

 private:
  static std::string original_name(const std::string& part, int64_t i) {
    constexpr std::array<std::pair<const char*, const char*>, 6> kNames = {{
        {".norm.", "mamba.layer.pre_norm."},
        {".mixer.", "mamba.layer.mamba."},
        {".norm2.", "feedforward.layer.pre_norm."},
        {".moe.gate", "feedforward.layer.feedforward.gating.gate"},
        {".moe.lin1", "feedforward.layer.feedforward.expert_inner_function.lin1_weight"},
        {".moe.lin2", "feedforward.layer.feedforward.expert_inner_function.lin2_weight"},
    }};
    for (const auto& [ours, theirs] : kNames)
      if (part.starts_with(ours))
        return fmt::format("encoder.blocks.block_{}.block.residual_{}{}", i, theirs,
                           part.substr(std::string_view(ours).size()));
    fail("{} has no name in the original layout", part);
  }

  OrderedJson own(const Config& c) const {
    OrderedJson j;
    j["architectures"] = OrderedJson::array({"MoeMambaForCausalLM"});
    write_shell(j, c);
    j["max_position_embeddings"] = c.positions;
    j["layer_norm_epsilon"] = shortest(c.norm_eps);
    j["intermediate_size"] = mamba.d_inner;
    j["state_size"] = mamba.d_state;
    j["conv_kernel"] = mamba.d_conv;
    j["time_step_rank"] = mamba.dt_rank;
    j["num_experts"] = moe.n_experts;
    j["num_experts_per_tok"] = moe.k;
    j["moe_intermediate_size"] = moe.d_inner;
    j["capacity_factor"] = moe.capacity_factor;
    j["router_aux_loss_coef"] = shortest(moe.balance);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

  OrderedJson original(const Config& c) const {
    require(mamba.d_inner % c.d_model == 0 && mamba.d_state == 16 && mamba.d_conv == 4 &&
                mamba.dt_rank == (c.d_model + 15) / 16 && c.norm_eps == 1e-5f && !c.tie_embeddings,
            "the original layout of MoE-Mamba has the usual sizes of a mixer only (state 16, "
            "convolution 4, dt rank D/16, norms with epsilon 1e-5, an untied head)");
    OrderedJson j;
    j["n_blocks"] = c.n_layer;
    j["dmodel"] = c.d_model;
    j["vocab_size"] = c.vocab_size;
    j["cutoff"] = c.positions;
    j["n_experts"] = moe.n_experts;
    j["expert_size"] = moe.d_inner;
    j["mamba_expansion"] = mamba.d_inner / c.d_model;
    j["routing_top_k"] = moe.k;
    j["capacity_factor"] = moe.capacity_factor;
    j["load_balancing_loss_weight"] = shortest(moe.balance);
    j["no_positional_embedding"] = c.positions == 0;
    j["block_modules"] = {"mamba", "feedforward"};
    j["ff_mode"] = "token_choice";
    j["moe_inner_expert"] = "ff";
    j["residual_mode"] = "pre_norm";
    j["norm_class"] = "layer_norm";
    return j;
  }
};

// The shell, and a body whose sizes are still to be filled in.
std::pair<Config, std::shared_ptr<MoeMambaBody>> begin(int64_t d_model, int64_t n_layer,
                                                       int64_t vocab_size, int64_t positions) {
  Config c;
  c.architecture = kMoeMamba.name;
  c.d_model = d_model;
  c.n_layer = n_layer;
  c.vocab_size = vocab_size;
  c.positions = positions;
  c.tie_embeddings = false;
  c.norm = ops::NormKind::layer;
  c.embedding.original = "embedding_layer.layers.0.weight";
  c.position_table.original = "embedding_layer.layers.1.layer.weight";
  c.norm_f = "";
  c.head.original = "head.weight";
  auto body = std::make_shared<MoeMambaBody>();
  body->mamba.d_model = body->moe.d_model = d_model;
  body->mamba.d_inner = 2 * d_model;
  body->mamba.dt_rank = (d_model + 15) / 16;
  body->moe.expert = nn::MoeConfig::Expert::relu;
  body->moe.balance = 0.01f;
  body->moe.capacity_factor = 1;
  return {c, body};
}

Config finish(Config c, std::shared_ptr<MoeMambaBody> body) {
  c.body = std::move(body);
  return c;
}

Config read_own(const JsonView& j) {
  auto [c, body] = begin(j.integer("hidden_size"), j.integer("num_hidden_layers"),
                         j.integer("vocab_size"), j.integer("max_position_embeddings", 0));
  nn::Mamba1Config& m = body->mamba;
  nn::MoeConfig& moe = body->moe;
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  m.d_inner = j.integer("intermediate_size", m.d_inner);
  m.d_state = j.integer("state_size", m.d_state);
  m.d_conv = j.integer("conv_kernel", m.d_conv);
  m.dt_rank = j.integer("time_step_rank", m.dt_rank);
  moe.n_experts = j.integer("num_experts");
  moe.k = j.integer("num_experts_per_tok", 1);
  moe.d_inner = j.integer("moe_intermediate_size", 3 * c.d_model);
  moe.capacity_factor = j.number("capacity_factor", 1);
  moe.balance = static_cast<float>(j.number("router_aux_loss_coef", 0.01));
  return finish(c, body);
}

// Arguments that choose another model than the one here.
void check_original(const JsonView& j) {
  constexpr std::array<std::pair<const char*, const char*>, 7> kTexts = {{
      {"ff_mode", "token_choice"},
      {"moe_inner_expert", "ff"},
      {"residual_mode", "pre_norm"},
      {"norm_class", "layer_norm"},
      {"activation_type", "relu"},
      {"mamba_mode", "vanilla"},
      {"get_router_values_from", "weights"},
  }};
  for (const auto& [key, value] : kTexts)
    if (j.text(key, value) != value) j.wrong(key, fmt::format("\"{}\"", value));
  if (j.boolean("parallel_blocks", false)) j.wrong("parallel_blocks", "false");
  const Json order = {"mamba", "feedforward"};
  if (const Json* given = j.find("block_modules"); given && *given != order)
    j.wrong("block_modules", order.dump());
  if (const Json* power = j.find("moe_values_exp");
      power && *power != Json("1.0") && *power != Json(1.0))
    j.wrong("moe_values_exp", "1.0");
}

Config read_original(const JsonView& j) {
  check_original(j);
  const bool positions = !j.boolean("no_positional_embedding", false);
  auto [c, body] = begin(j.integer("dmodel"), j.integer("n_blocks"), j.integer("vocab_size"),
                         positions ? j.integer("cutoff") : 0);
  const double E = j.number("mamba_expansion", 2) * static_cast<double>(c.d_model);
  body->mamba.d_inner = E >= 1 && E < 1e12 ? static_cast<int64_t>(E) : 0;  // 0: see check()
  nn::MoeConfig& moe = body->moe;
  moe.n_experts = j.integer("n_experts");
  moe.k = j.integer("routing_top_k", 1);
  moe.d_inner = j.integer("expert_size");
  moe.capacity_factor = j.number("capacity_factor", 1);
  moe.balance = static_cast<float>(j.number("load_balancing_loss_weight", 0.01));
  return finish(c, body);
}

}  // namespace

const Architecture kMoeMamba = {
    "moe_mamba",
    [](const JsonView& j, Layout layout) {
      return layout == Layout::huggingface ? j.text("model_type") == "moe_mamba"
                                           : j.has("n_blocks") && j.has("n_experts");
    },
    [](const JsonView& j, Layout layout) {
      return layout == Layout::huggingface ? read_own(j) : read_original(j);
    },
    // Table 1 of the paper: active parameters in the name.
    [] {
      return std::vector<std::string>{"moe-mamba-25m", "moe-mamba-100m"};
    },
    [](const std::string& name) {
      const bool small = name == "moe-mamba-25m";
      auto [c, body] = begin(small ? 512 : 768, small ? 8 : 16, 50257, 1024);
      body->moe.n_experts = 42;
      body->moe.d_inner = 3 * c.d_model;
      return finish(c, body);
    }};

}  // namespace krait::models
