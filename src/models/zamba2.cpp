// Zamba2 (Zyphra 2024): Mamba-2 layers; in front of some of them one of a few transformer blocks, whose
// parameters all its uses share but for low-rank adapters. Hugging Face layout.
#include <algorithm>
#include <cmath>
#include <utility>

#include "krait/base/error.h"
#include "krait/models/mamba2.h"
#include "krait/models/presets.h"
#include "krait/models/rotary_keys.h"
#include "krait/models/transformer_keys.h"
#include "krait/ops/add/add.h"
#include "krait/ops/concat/concat.h"
#include "krait/ops/linear/linear.h"

namespace krait::models {

namespace {

struct Sizes : TransformerKeys {
  Sizes() { longest = 4096; }

  nn::Mamba2Config mamba;
  std::vector<int64_t> hybrid;  // layers that have the transformer in front
  int64_t shared = 1;           // transformer blocks, used in turn
  int64_t rank = 128;           // of the adapters
  bool attention_adapters = false, mlp_adapters = true;
  bool rotates = false;
};

struct Transformer {
  nn::Norm norm;
  nn::Attention attention;
  nn::Norm norm_mlp;
  nn::Mlp mlp;
};

// With e the embeddings:  t = linear(mlp(norm(attention(norm([r | e])))))     r <- r + mamba(norm(r + t))
class HybridBlock : public nn::Block {
 public:
  HybridBlock(Transformer transformer, const nn::Param& linear, const nn::Norm& norm,
              std::unique_ptr<nn::Mixer> mamba)
      : transformer_(std::move(transformer)),
        linear_(linear),
        norm_(norm),
        mamba_(std::move(mamba)) {}

  std::vector<nn::StatePart> state_parts() const override {
    std::vector<nn::StatePart> all = transformer_.attention.state_parts();
    for (const nn::StatePart& p : mamba_->state_parts()) all.push_back(p);
    return all;
  }
  bool reads_embeddings() const override { return true; }

  Tensor forward(Context& c, const Tensor& r, nn::BlockCall& call) const override {
    const Transformer& f = transformer_;
    nn::BlockState left = std::exchange(call.state, {});
    const Tensor pair = ops::concat(c, r, call.embedded);  // (B, L, 2D)
    Tensor y = nn::forward_part(c, f.attention, f.norm(c, pair, c.activation), {}, call,
                                left);  // (B, L, D)
    y = nn::forward_part(c, f.mlp, f.norm_mlp(c, y, c.activation), {}, call, left);
    const Tensor t = ops::linear(c, y, linear_.value, {}, DType::f32);
    const Tensor x = norm_(c, ops::add(c, r, t), c.activation);
    return nn::forward_part(c, *mamba_, x, r, call, left);
  }

 private:
  const Transformer transformer_;
  const nn::Param& linear_;
  const nn::Norm norm_;
  const std::unique_ptr<nn::Mixer> mamba_;
};

class ZambaBody : public Body {
 public:
  explicit ZambaBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const Sizes& s = sizes_;
    nn::check(s.mamba);
    s.TransformerKeys::check();
    check_size("num_mem_blocks", s.shared, 1, 1 << 10);
    check_size("adapter_rank", s.rank, 1, 1 << 16);
    for (const int64_t i : s.hybrid) check_size("layers_block_type", i, 0, c.n_layer - 1);
  }

  std::vector<std::unique_ptr<nn::Block>> layers(nn::ParamSet& params,
                                                 const Config& c) const override {
    const Sizes& s = sizes_;
    std::vector<std::unique_ptr<nn::Block>> all;
    std::vector<std::string> names;         // of the shared blocks: by their first layers
    std::vector<Transformer> transformers;  // as many
    size_t use = 0;
    for (int64_t i = 0; i < c.n_layer; ++i) {
      const std::string name = fmt::format("model.layers.{}.", i);
      if (std::find(s.hybrid.begin(), s.hybrid.end(), i) == s.hybrid.end()) {
        auto block = std::make_unique<nn::PreNorm>();
        block->add(make_norm(params, name + "input_layernorm", c),
                   std::make_unique<nn::Mamba2>(params, name + "mamba", s.mamba));
        all.push_back(std::move(block));
        continue;
      }
      const size_t k = use % static_cast<size_t>(s.shared);
      if (k == transformers.size()) {
        names.push_back(name + "shared_transformer.");
        transformers.push_back(transformer(params, c, names[k]));
      }
      nn::Param& linear =
          params.add(name + "linear.weight", {c.d_model, c.d_model}, nn::normal(s.deviation));
      linear.decay = true;
      const std::string decoder = name + "mamba_decoder.";
      const nn::Norm before = make_norm(params, decoder + "input_layernorm", c);
      all.push_back(std::make_unique<HybridBlock>(
          adapted(params, c, transformers[k], names[k], use), linear, before,
          std::make_unique<nn::Mamba2>(params, decoder + "mamba", s.mamba)));
      ++use;
    }
    return all;
  }

  OrderedJson json(const Config& c, Layout layout) const override;

  const Sizes& sizes() const { return sizes_; }

 private:
  Transformer transformer(nn::ParamSet& params, const Config& c, const std::string& name) const {
    const nn::Norm first =
        nn::Norm::make(params, name + "input_layernorm", c.norm, 2 * c.d_model, c.norm_eps);
    nn::Attention attention(params, name + "self_attn", sizes_.attention);
    const nn::Norm second = make_norm(params, name + "pre_ff_layernorm", c);
    return {first, attention, second, nn::Mlp(params, name + "feed_forward", sizes_.mlp)};
  }

  // The transformer for one of its uses: the same parameters, adapters of its own.
  Transformer adapted(nn::ParamSet& params, const Config& c, Transformer t, const std::string& name,
                      size_t use) const {
    const Sizes& s = sizes_;
    const auto adapter = [&](const std::string& list, int64_t K, int64_t N) {
      return nn::Adapter::make(params, fmt::format("{}{}_adapter_list.{}", name, list, use), s.rank,
                               K, N, s.deviation);
    };
    const int64_t K = s.attention.width(), N = s.attention.heads * s.attention.head_dim;
    if (s.attention_adapters) {
      t.attention.set_adapter(0, adapter("self_attn.linear_q", K, N));
      t.attention.set_adapter(1, adapter("self_attn.linear_k", K, N));
      t.attention.set_adapter(2, adapter("self_attn.linear_v", K, N));
    }
    if (s.mlp_adapters)
      t.mlp.set_up_adapter(adapter("feed_forward.gate_up_proj", c.d_model, 2 * s.mlp.d_inner));
    return t;
  }

  const Sizes sizes_;
};

OrderedJson ZambaBody::json(const Config& c, Layout layout) const {
  const Sizes& s = sizes_;
  OrderedJson j = huggingface_json(c, layout, "Zamba2", "Zamba2ForCausalLM");
  write_transformer(j, s);
  std::vector<std::string> kinds(static_cast<size_t>(c.n_layer), "mamba");
  for (const int64_t i : s.hybrid) kinds[static_cast<size_t>(i)] = "hybrid";
  j["layers_block_type"] = kinds;
  j["hybrid_layer_ids"] = s.hybrid;
  j["num_mem_blocks"] = s.shared;
  j["adapter_rank"] = s.rank;
  j["use_shared_attention_adapter"] = s.attention_adapters;
  j["use_shared_mlp_adapter"] = s.mlp_adapters;
  j["attention_hidden_size"] = s.attention.d_in;
  j["attention_head_dim"] = s.attention.head_dim;
  j["use_mem_rope"] = s.rotates;
  j["rope_theta"] = s.attention.rotation.base;
  write_scaling(j, s.attention.rotation.scaling);
  j["add_bias_linear"] = s.mlp.bias;
  j["hidden_act"] = "gelu";
  j["rms_norm_eps"] = shortest(c.norm_eps);
  j["n_mamba_heads"] = s.mamba.heads();
  j["mamba_headdim"] = s.mamba.headdim;
  j["mamba_d_state"] = s.mamba.d_state;
  j["mamba_ngroups"] = s.mamba.groups;
  j["mamba_d_conv"] = s.mamba.d_conv;
  j["mamba_expand"] = expansion(s.mamba.d_ssm, c.d_model);
  j["use_conv_bias"] = true;  // transformers has one whatever is said here
  j["time_step_min"] = s.mamba.dt_min;
  j["time_step_max"] = s.mamba.dt_max;
  j["time_step_floor"] = s.mamba.dt_floor;
  j["tie_word_embeddings"] = c.tie_embeddings;
  write_eos(j, c);
  return j;
}

Config finish(Config c, Sizes s) {
  c.architecture = kZamba2.name;
  c.embedding = {"model.embed_tokens.weight", ""};
  c.norm_f = "model.final_layernorm";
  s.mamba.d_model = c.d_model;
  s.mamba.dt_low =
      static_cast<float>(s.mamba.dt_min);  // Δ is clamped there: systems.md, section 15
  nn::AttentionConfig& a = s.attention;
  s.settle(c);
  a.d_in = 2 * c.d_model;
  a.scale = std::sqrt(2 / static_cast<float>(std::max<int64_t>(1, a.head_dim)));
  a.rotation.R = s.rotates ? a.head_dim : 0;
  s.mlp.layout = nn::MlpLayout::gate_first;
  s.mlp.gate_kind = ops::Gate::gelu;
  s.mlp.up = "gate_up_proj";
  c.body = std::make_shared<ZambaBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "zamba2";
}

std::vector<int64_t> hybrid_layers(const JsonView& j, int64_t n_layer) {
  const Json& kinds = j.at("layers_block_type");
  if (!kinds.is_array() || static_cast<int64_t>(kinds.size()) != n_layer)
    j.wrong("layers_block_type", fmt::format("a list of {} names", n_layer));
  std::vector<int64_t> hybrid;
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i] == "hybrid") {
      hybrid.push_back(static_cast<int64_t>(i));
    } else if (kinds[i] != "mamba" && kinds[i] != "linear_attention") {  // the older and newer name
      j.wrong("layers_block_type", "names \"mamba\" or \"linear_attention\", and \"hybrid\"");
    }
  }
  return hybrid;
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  expect_text(j, "hidden_act", "gelu");
  c.vocab_size = 32000, c.d_model = 2560, c.n_layer = 54;
  c.norm_eps = 1e-5f, c.tie_embeddings = true;
  read_shell(j, c);
  s.hybrid = hybrid_layers(j, c.n_layer);
  s.shared = j.integer("num_mem_blocks", 1);
  s.rank = j.integer("adapter_rank", 128);
  s.attention_adapters = j.boolean("use_shared_attention_adapter", false);
  s.mlp_adapters = j.boolean("use_shared_mlp_adapter", true);
  s.mlp.bias = j.boolean("add_bias_linear", false);
  nn::AttentionConfig& a = s.attention;
  s.mlp.d_inner = 4 * c.d_model, a.heads = 32;
  read_transformer(j, s);
  a.head_dim = j.integer("attention_head_dim", a.heads > 0 ? 2 * c.d_model / a.heads : 0);
  if (j.integer("attention_hidden_size", 2 * c.d_model) != 2 * c.d_model)
    j.wrong("attention_hidden_size", fmt::format("2 hidden_size = {}", 2 * c.d_model));
  s.rotates = j.boolean("use_mem_rope", false);
  const RotaryKeys turns = rotary_keys(j, {10000, 1});
  a.rotation.base = turns.base, a.rotation.scaling = turns.scaling;
  nn::Mamba2Config& m = s.mamba;
  m.d_ssm = expanded(j.number("mamba_expand", 2), c.d_model);
  const int64_t heads = j.integer("n_mamba_heads", 8);
  m.headdim = j.integer("mamba_headdim", heads > 0 ? m.d_ssm / heads : 0);
  if (heads < 1 || m.headdim < 1 || m.d_ssm % heads != 0 || m.d_ssm / heads != m.headdim)
    j.wrong("n_mamba_heads", fmt::format("mamba_expand * hidden_size / mamba_headdim = {} / {}",
                                         m.d_ssm, m.headdim));
  m.d_state = j.integer("mamba_d_state", 64);
  m.groups = j.integer("mamba_ngroups", 1);
  m.d_conv = j.integer("mamba_d_conv", 4);
  m.in_bias = m.out_bias = s.mlp.bias;
  m.dt_min = j.number("time_step_min", m.dt_min);
  m.dt_max = j.number("time_step_max", m.dt_max);
  m.dt_floor = j.number("time_step_floor", m.dt_floor);
  return finish(c, s);
}

// A file that lacks the blocks of later uses shares them. transformers writes one for each use
// where the embeddings are not tied, as it then ties nothing at all. Its MLPs have adapters
// whatever "use_shared_mlp_adapter" says.
void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  Sizes s = static_cast<const ZambaBody&>(*c.body).sizes();
  const auto has = [&](int64_t layer, const char* part) {
    return shape_of(fmt::format("model.layers.{}.shared_transformer.{}.weight", layer, part)) !=
           nullptr;
  };
  int64_t blocks = 0;
  for (const int64_t i : s.hybrid) blocks += has(i, "pre_ff_layernorm");
  if (blocks > s.shared) follow_weights("num_mem_blocks", s.shared, blocks, notes);
  if (!s.hybrid.empty() && has(s.hybrid[0], "feed_forward.gate_up_proj_adapter_list.0.0"))
    follow_weights("use_shared_mlp_adapter", s.mlp_adapters, true, notes);
  c.body = std::make_shared<ZambaBody>(s);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, d_state, groups, shared;
  bool attention_adapters, rotates;
  std::vector<int64_t> hybrid;
};

// As published.
const std::vector<Preset>& published() {
  static const std::vector<Preset> all = {
      {"zamba2-1.2b", 2048, 38, 128, 1, 1, true, true, {5, 11, 17, 23, 29, 35}},
      {"zamba2-2.7b", 2560, 54, 64, 1, 2, false, false, {6, 12, 18, 24, 30, 36, 42, 47, 51}},
      {"zamba2-7b",
       3584,
       81,
       64,
       2,
       2,
       false,
       true,
       {6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77}}};
  return all;
}

std::vector<std::string> presets() { return names_of(published()); }

Config preset_of(const std::string& name) {
  const Preset& p = named(published(), name);
  Config c;
  c.vocab_size = 32000;
  c.d_model = p.d_model;
  c.n_layer = p.n_layer;
  Sizes s;
  s.hybrid = p.hybrid;
  s.shared = p.shared;
  s.attention_adapters = p.attention_adapters;
  s.rotates = p.rotates;
  s.mlp.d_inner = 4 * c.d_model;
  s.attention.heads = s.attention.key_heads = 32;
  s.attention.head_dim = 2 * c.d_model / 32;
  s.mamba.d_ssm = 2 * c.d_model;
  s.mamba.d_state = p.d_state;
  s.mamba.groups = p.groups;
  return finish(c, s);
}

}  // namespace

const Architecture kZamba2 = {"zamba2", claims, read, presets, preset_of, follow};

}  // namespace krait::models
