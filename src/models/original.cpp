#include "krait/models/original.h"

#include <algorithm>
#include <cmath>

#include "krait/base/error.h"
#include "krait/nn/mlp.h"

namespace krait::models {

bool OriginalLayers::is_attention(int64_t layer) const {
  return std::binary_search(attention_at.begin(), attention_at.end(), layer);
}

std::string OriginalLayers::first_ssm() const {
  int64_t first = 0;
  while (is_attention(first)) ++first;
  return fmt::format("backbone.layers.{}.", first);
}

void OriginalLayers::check(const Config& c) const {
  check_size("d_intermediate", d_intermediate, 0, 1 << 22);
  if (attention_at.empty()) return;
  check_size("attn_layer_idx", attention_at.front(), 0, c.n_layer - 1);
  check_size("attn_layer_idx", attention_at.back(), 0, c.n_layer - 1);
  const nn::AttentionConfig& a = attention;
  check_size("num_heads", a.heads, 1, 512);
  check_size("num_heads_kv", a.key_heads, 1, a.heads);
  require(a.heads % a.key_heads == 0, "config: num_heads_kv: expected a divisor of {}, got {}",
          a.heads, a.key_heads);
  check_size("head_dim", a.head_dim, 1, 256);
  check_size("rotary_emb_dim", a.rotation.R, 0, a.head_dim);
  require(a.rotation.R % 2 == 0, "config: rotary_emb_dim: expected an even number, got {}",
          a.rotation.R);
  if (a.d_conv != 0) check_size("attn_cfg.d_conv", a.d_conv, 2, 8);
}

Config read_original_shell(const JsonView& j) {
  Config c;
  c.d_model = j.integer("d_model");
  c.n_layer = j.integer("n_layer");
  c.vocab_size = j.integer("vocab_size");
  c.vocab_multiple = j.integer("pad_vocab_size_multiple", 8);
  c.norm = j.boolean("rms_norm", true) ? ops::NormKind::rms : ops::NormKind::layer;
  c.tie_embeddings = j.boolean("tie_embeddings", true);
  return c;
}

OriginalLayers read_original_layers(const JsonView& j, const Config& c) {
  OriginalLayers o;
  o.d_intermediate = j.integer("d_intermediate", 0);
  if (const Json* at = j.find("attn_layer_idx")) {
    if (!at->is_array()) j.wrong("attn_layer_idx", "a list of layers");
    for (const Json& layer : *at) {
      if (!layer.is_number_integer()) j.wrong("attn_layer_idx", "a list of layers");
      o.attention_at.push_back(layer.get<int64_t>());
    }
    std::sort(o.attention_at.begin(), o.attention_at.end());
  }
  if (o.attention_at.empty()) return o;
  const JsonView a = j.object("attn_cfg");
  if (!a.boolean("causal", false)) a.wrong("causal", "true, in a language model");
  nn::AttentionConfig& g = o.attention;
  g.heads = a.integer("num_heads");
  g.key_heads = a.integer("num_heads_kv", g.heads);
  g.head_dim = a.integer("head_dim", g.heads > 0 ? c.d_model / g.heads : 0);
  g.scale = static_cast<float>(a.number("softmax_scale", 0));
  g.rotation.R = a.integer("rotary_emb_dim", 0);
  g.rotation.base = a.number("rotary_emb_base", 10000);
  g.rotation.interleaved = a.boolean("rotary_emb_interleaved", false);
  g.d_conv = a.integer("d_conv", 0);
  const int64_t mlp = a.integer("mlp_dim", 0);  // up and gate together, rounded up there
  if (mlp < 0 || mlp > (1 << 22)) a.wrong("mlp_dim", fmt::format("a number from 0 to {}", 1 << 22));
  g.d_mlp = (mlp + 255) / 256 * 128;
  g.qkv_bias = a.boolean("qkv_proj_bias", true);
  g.out_bias = a.boolean("out_proj_bias", true);
  return o;
}

static OrderedJson attention_json(const nn::AttentionConfig& g) {
  OrderedJson a;
  a["causal"] = true;
  if (g.d_conv > 0) a["d_conv"] = g.d_conv;
  a["head_dim"] = g.head_dim;
  if (g.d_mlp > 0) a["mlp_dim"] = 2 * g.d_mlp;
  a["num_heads"] = g.heads;
  if (g.key_heads != g.heads) a["num_heads_kv"] = g.key_heads;
  a["out_proj_bias"] = g.out_bias;
  a["qkv_proj_bias"] = g.qkv_bias;
  a["rotary_emb_dim"] = g.rotation.R;
  if (g.rotation.base != 10000) a["rotary_emb_base"] = g.rotation.base;
  if (g.rotation.interleaved) a["rotary_emb_interleaved"] = true;
  if (g.scale > 0) a["softmax_scale"] = shortest(g.scale);
  return a;
}

OrderedJson write_original(const Config& c, const OriginalLayers& o, const OrderedJson& ssm_cfg) {
  require(c.norm_eps == 1e-5f,
          "the original layout has norms with epsilon 1e-5 only; this model's is {}", c.norm_eps);
  OrderedJson j;
  j["d_model"] = c.d_model;
  if (o.d_intermediate > 0) j["d_intermediate"] = o.d_intermediate;
  j["n_layer"] = c.n_layer;
  j["vocab_size"] = c.vocab_size;
  j["ssm_cfg"] = ssm_cfg;
  if (!o.attention_at.empty()) {
    j["attn_layer_idx"] = o.attention_at;
    j["attn_cfg"] = attention_json(o.attention);
  }
  j["rms_norm"] = c.norm == ops::NormKind::rms;
  j["residual_in_fp32"] = true;
  j["fused_add_norm"] = true;
  j["pad_vocab_size_multiple"] = c.vocab_multiple;
  j["tie_embeddings"] = c.tie_embeddings;
  return j;
}

std::unique_ptr<nn::Block> original_layer(nn::ParamSet& params, const Config& c, int64_t i,
                                          const OriginalLayers& o, const MakeSsm& ssm) {
  const std::string name = fmt::format("backbone.layers.{}", i);
  const double rescale = std::sqrt(static_cast<double>(c.n_layer));
  auto block = std::make_unique<nn::PreNorm>();
  const auto norm = [&](const char* which) {
    return nn::Norm::make(params, name + which, c.norm, c.d_model, c.norm_eps);
  };
  const nn::Norm first = norm(".norm");
  if (o.is_attention(i)) {
    nn::AttentionConfig a = o.attention;
    a.d_model = c.d_model;
    a.layout = nn::QkvLayout::rows;
    a.out_rescale = rescale;
    block->add(first, std::make_unique<nn::Attention>(params, name + ".mixer", a));
  } else {
    block->add(first, ssm(params, name + ".mixer"));
  }
  if (o.d_intermediate == 0) return block;
  nn::MlpConfig m;
  m.d_model = c.d_model;
  m.d_inner = (o.d_intermediate + 127) / 128 * 128;
  m.layout = nn::MlpLayout::gate_last;
  m.up = "fc1";
  m.down = "fc2";
  m.out_rescale = rescale;
  const nn::Norm second = norm(".norm2");
  block->add(second, std::make_unique<nn::Mlp>(params, name + ".mlp", m));
  return block;
}

void follow_original(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  bool rms = c.norm == ops::NormKind::rms;
  follow_weights("rms_norm", rms, shape_of("backbone.norm_f.bias") == nullptr, notes);
  c.norm = rms ? ops::NormKind::rms : ops::NormKind::layer;
  int64_t layers = 0;
  while (shape_of(fmt::format("backbone.layers.{}.norm.weight", layers))) ++layers;
  if (layers > 0) follow_weights("n_layer", c.n_layer, layers, notes);
}

void follow_layers(OriginalLayers& o, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  if (const Shape* s = shape_of("backbone.layers.0.mlp.fc2.weight");
      s && s->rank == 2 && (o.d_intermediate + 127) / 128 * 128 != (*s)[1])
    follow_weights("d_intermediate", o.d_intermediate, (*s)[1], notes);
  if (o.attention_at.empty()) return;
  const std::string mixer = fmt::format("backbone.layers.{}.mixer.", o.attention_at.front());
  const auto has = [&](const char* part) { return shape_of(mixer + part) != nullptr; };
  if (!has("in_proj.weight") || !has("out_proj.weight")) return;
  follow_weights("qkv_proj_bias", o.attention.qkv_bias, has("in_proj.bias"), notes);
  follow_weights("out_proj_bias", o.attention.out_bias, has("out_proj.bias"), notes);
}

}  // namespace krait::models
