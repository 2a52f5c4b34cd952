#include "krait/models/mamba2.h"

#include <array>
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/original.h"
#include "krait/models/presets.h"

namespace krait::models {

namespace {

class Mamba2Body : public Body {
 public:
  explicit Mamba2Body(const nn::Mamba2Config& m) : mixer(m) {}

  void check(const Config&) const override { nn::check(mixer); }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    nn::Mamba2Config m = mixer;
    m.d_model = c.d_model;
    m.out_rescale = std::sqrt(static_cast<double>(c.n_layer));
    return original_layer(params, c, i, {}, [&](nn::ParamSet& p, const std::string& name) {
      return std::make_unique<nn::Mamba2>(p, name, m);
    });
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    return layout == Layout::huggingface ? huggingface(c) : original(c);
  }

  const nn::Mamba2Config mixer;  // d_model and out_rescale follow from the shell

 private:
  OrderedJson huggingface(const Config& c) const;
  OrderedJson original(const Config& c) const;
};

Config read_huggingface(const JsonView& j) {
  Config c;
  expect_text(j, "hidden_act", "silu");
  c.vocab_size = j.integer("vocab_size", 32768);
  c.d_model = j.integer("hidden_size", 4096);
  c.n_layer = j.integer("num_hidden_layers", 64);
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", false);
  c.eos_ids = eos_ids(j);
  nn::Mamba2Config m;
  m.headdim = j.integer("head_dim", 64);
  m.d_ssm = expanded(j.number("expand", 2), c.d_model);
  if (const int64_t heads = j.integer("num_heads", 128); heads < 1 || m.headdim < 1 ||
                                                         heads > (int64_t{1} << 22) / m.headdim ||
                                                         heads * m.headdim != m.d_ssm)
    j.wrong("num_heads",
            fmt::format("expand * hidden_size / head_dim = {} / {}", m.d_ssm, m.headdim));
  m.d_state = j.integer("state_size", 128);
  m.groups = j.integer("n_groups", 8);
  m.d_conv = j.integer("conv_kernel", 4);
  m.conv_bias = j.boolean("use_conv_bias", true);
  m.in_bias = m.out_bias = j.boolean("use_bias", false);
  m.norm_eps = c.norm_eps;
  read_dt_limits(j, "time_step_limit", m);
  m.dt_min = j.number("time_step_min", m.dt_min);
  m.dt_max = j.number("time_step_max", m.dt_max);
  m.dt_floor = j.number("time_step_floor", m.dt_floor);
  return with_mamba2(c, m);
}

Config read_original(const JsonView& j) {
  const Config c = read_original_shell(j);
  return with_mamba2(c, read_original_mamba2(j.object("ssm_cfg"), c.d_model));
}

OrderedJson Mamba2Body::huggingface(const Config& c) const {
  const nn::Mamba2Config& m = mixer;
  const char* const only =
      "the Hugging Face layout of Mamba-2 has {}; this model does not: write "
      "the original layout";
  require(c.norm == ops::NormKind::rms, fmt::runtime(only), "root-mean-square norms only");
  require(m.norm && !m.norm_before_gate, fmt::runtime(only), "a norm after the gate");
  require(m.d_mlp == 0 && !m.D_per_channel, fmt::runtime(only), "no MLP part and a D a head");
  require(m.d_ssm % c.d_model == 0, fmt::runtime(only), "a whole number for expand");
  OrderedJson j;
  j["architectures"] = OrderedJson::array({"Mamba2ForCausalLM"});
  write_shell(j, c);
  j["expand"] = m.d_ssm / c.d_model;
  j["num_heads"] = m.heads();
  j["head_dim"] = m.headdim;
  j["state_size"] = m.d_state;
  j["n_groups"] = m.groups;
  j["conv_kernel"] = m.d_conv;
  j["chunk_size"] = 256;
  j["use_bias"] = m.in_bias;
  j["use_conv_bias"] = m.conv_bias;
  j["hidden_act"] = "silu";
  j["layer_norm_epsilon"] = shortest(c.norm_eps);
  j["rms_norm"] = true;
  j["residual_in_fp32"] = true;
  // It is how the weights were drawn, but transformers would draw out_proj again after loading.
  j["rescale_prenorm_residual"] = false;
  j["tie_word_embeddings"] = c.tie_embeddings;
  j["time_step_limit"] = dt_limits(m);
  j["time_step_min"] = m.dt_min;
  j["time_step_max"] = m.dt_max;
  j["time_step_floor"] = m.dt_floor;
  write_eos(j, c);
  return j;
}

OrderedJson Mamba2Body::original(const Config& c) const {
  require(c.norm_eps == 1e-5f && mixer.norm_eps == 1e-5f,
          "the original layout has norms with epsilon 1e-5 only; this model's is {}", c.norm_eps);
  OrderedJson j;
  j["d_model"] = c.d_model;
  j["d_intermediate"] = 0;
  j["n_layer"] = c.n_layer;
  j["vocab_size"] = c.vocab_size;
  nn::Mamba2Config m = mixer;
  m.d_model = c.d_model;
  j["ssm_cfg"] = original_mamba2(m);
  j["attn_layer_idx"] = OrderedJson::array();
  j["attn_cfg"] = OrderedJson::object();
  j["rms_norm"] = c.norm == ops::NormKind::rms;
  j["residual_in_fp32"] = true;
  j["fused_add_norm"] = true;
  j["pad_vocab_size_multiple"] = c.vocab_multiple;
  j["tie_embeddings"] = c.tie_embeddings;
  return j;
}

bool claims(const JsonView& j, Layout layout) {
  if (layout == Layout::huggingface) return j.text("model_type") == "mamba2";
  if (const Json* attention = j.find("attn_layer_idx"); attention && !attention->empty())
    return false;
  return j.integer("d_intermediate", 0) == 0 && j.has("ssm_cfg") &&
         j.object("ssm_cfg").text("layer", "Mamba1") == "Mamba2";
}

Config read(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface ? read_huggingface(j) : read_original(j);
}

void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  nn::Mamba2Config m = mamba2_of(c);
  follow_mamba2(m, "backbone.layers.0.mixer.", shape_of, notes);
  follow_original(c, shape_of, notes);
  c = with_mamba2(c, m);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, vocab = 50277, multiple = 16;
};

// The published sizes: table 9 of the paper; and one over bytes to learn with.
constexpr std::array kPresets = {
    Preset{"mamba2-130m", 768, 24},  Preset{"mamba2-370m", 1024, 48},
    Preset{"mamba2-780m", 1536, 48}, Preset{"mamba2-1.3b", 2048, 48},
    Preset{"mamba2-2.7b", 2560, 64}, Preset{"mamba2-byte-small", 256, 6, 256, 1}};

std::vector<std::string> presets() { return names_of(kPresets); }

Config preset_of(const std::string& name) {
  const Preset& p = named(kPresets, name);
  return mamba2_config(p.d_model, p.n_layer, p.vocab, p.multiple);
}

}  // namespace

const Architecture kMamba2 = {"mamba2", claims, read, presets, preset_of, follow};

nn::Mamba2Config read_original_mamba2(const JsonView& s, int64_t d_model) {
  nn::Mamba2Config m;
  const int64_t E = expanded(s.number("expand", 2), d_model);
  m.d_model = d_model;
  m.d_ssm = s.integer("d_ssm", E);
  m.d_mlp = E - m.d_ssm;
  m.headdim = s.integer("headdim", m.headdim);
  m.d_state = s.integer("d_state", m.d_state);
  m.groups = s.integer("ngroups", m.groups);
  m.d_conv = s.integer("d_conv", m.d_conv);
  m.conv_bias = s.boolean("conv_bias", m.conv_bias);
  m.in_bias = m.out_bias = s.boolean("bias", m.in_bias);
  m.D_per_channel = s.boolean("D_has_hdim", m.D_per_channel);
  m.norm = s.boolean("rmsnorm", m.norm);
  m.norm_before_gate = s.boolean("norm_before_gate", m.norm_before_gate);
  read_dt_limits(s, "dt_limit", m);
  m.dt_min = s.number("dt_min", m.dt_min);
  m.dt_max = s.number("dt_max", m.dt_max);
  m.dt_floor = s.number("dt_init_floor", m.dt_floor);
  const std::vector<double> A = numbers(s, "A_init_range", {m.A_min, m.A_max});
  m.A_min = A[0], m.A_max = A[1];
  return m;
}

// Only what differs from the defaults, as published files do.
OrderedJson original_mamba2(const nn::Mamba2Config& m) {
  const nn::Mamba2Config usual;
  const int64_t E = m.d_ssm + m.d_mlp;
  OrderedJson s;
  s["layer"] = "Mamba2";
  if (E % m.d_model != 0) {
    s["expand"] = static_cast<double>(E) / static_cast<double>(m.d_model);
  } else if (E != 2 * m.d_model) {
    s["expand"] = E / m.d_model;
  }
  if (m.d_mlp != 0) s["d_ssm"] = m.d_ssm;
  if (m.headdim != usual.headdim) s["headdim"] = m.headdim;
  if (m.d_state != usual.d_state) s["d_state"] = m.d_state;
  if (m.groups != usual.groups) s["ngroups"] = m.groups;
  if (m.d_conv != usual.d_conv) s["d_conv"] = m.d_conv;
  if (!m.conv_bias) s["conv_bias"] = false;
  if (m.in_bias) s["bias"] = true;
  if (m.D_per_channel) s["D_has_hdim"] = true;
  if (!m.norm) s["rmsnorm"] = false;
  if (m.norm_before_gate) s["norm_before_gate"] = true;
  if (m.dt_low != usual.dt_low || m.dt_high != usual.dt_high) s["dt_limit"] = dt_limits(m);
  if (m.dt_min != usual.dt_min) s["dt_min"] = m.dt_min;
  if (m.dt_max != usual.dt_max) s["dt_max"] = m.dt_max;
  if (m.dt_floor != usual.dt_floor) s["dt_init_floor"] = m.dt_floor;
  if (m.A_min != usual.A_min || m.A_max != usual.A_max)
    s["A_init_range"] = OrderedJson::array({m.A_min, m.A_max});
  return s;
}

void follow_mamba2(nn::Mamba2Config& m, const std::string& mixer, const ShapeOf& shape_of,
                   std::vector<std::string>& notes) {
  // Elements along an axis of a tensor of this rank, 0 where there is none.
  const auto size = [&](const char* part, int rank, int axis) -> int64_t {
    const Shape* s = shape_of(mixer + part);
    return s && s->rank == rank ? (*s)[axis] : 0;
  };
  const int64_t E = size("out_proj.weight", 2, 1), heads = size("dt_bias", 1, 0),
                D = size("D", 1, 0), convolved = size("conv1d.weight", 3, 0),
                W = size("conv1d.weight", 3, 2);
  if (E == 0 || heads == 0 || D == 0 || W == 0) return;  // is said where the tensors are read
  follow_weights("rmsnorm", m.norm, shape_of(mixer + "norm.weight") != nullptr, notes);
  const int64_t normed = size("norm.weight", 1, 0);
  follow_weights("d_ssm", m.d_ssm, normed > 0 ? normed : E - m.d_mlp, notes);
  m.d_mlp = E - m.d_ssm;
  if (m.d_ssm % heads == 0) follow_weights("headdim", m.headdim, m.d_ssm / heads, notes);
  if (m.headdim > 1) follow_weights("D_has_hdim", m.D_per_channel, D != heads, notes);
  // Shapes know N groups, and the number of groups only where the config's N cannot be.
  const int64_t both = (convolved - m.d_ssm) / 2;
  if (m.groups > 0 && m.d_state > 0 && both > 0 && both != m.groups * m.d_state) {
    if (both % m.groups == 0 && both % m.d_state != 0) {
      follow_weights("d_state", m.d_state, both / m.groups, notes);
    } else if (both % m.groups != 0 && both % m.d_state == 0) {
      follow_weights("groups", m.groups, both / m.d_state, notes);
    }
  }
  follow_weights("d_conv", m.d_conv, W, notes);
  follow_weights("conv_bias", m.conv_bias, shape_of(mixer + "conv1d.bias") != nullptr, notes);
  follow_weights("bias", m.in_bias, shape_of(mixer + "in_proj.bias") != nullptr, notes);
  m.out_bias = m.in_bias;
}

Config mamba2_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple) {
  Config c;
  c.d_model = d_model;
  c.n_layer = n_layer;
  c.vocab_size = vocab_size;
  c.vocab_multiple = vocab_multiple;
  nn::Mamba2Config m;
  m.d_ssm = 2 * d_model;
  return with_mamba2(c, m);
}

const nn::Mamba2Config& mamba2_of(const Config& config) {
  const auto* body = dynamic_cast<const Mamba2Body*>(config.body.get());
  require(body != nullptr, "expected a Mamba-2 model, got the architecture \"{}\"",
          config.architecture);
  return body->mixer;
}

Config with_mamba2(Config config, const nn::Mamba2Config& mixer) {
  config.architecture = kMamba2.name;
  nn::Mamba2Config m = mixer;
  m.d_model = config.d_model;
  config.body = std::make_shared<Mamba2Body>(m);
  return config;
}

void read_dt_limits(const JsonView& j, const char* key, nn::Mamba2Config& m) {
  const std::vector<double> limits = numbers(j, key, {m.dt_low, m.dt_high});
  m.dt_low = static_cast<float>(limits[0]), m.dt_high = static_cast<float>(limits[1]);
}

OrderedJson dt_limits(const nn::Mamba2Config& m) {
  const auto number = [](float x) {
    return std::isinf(x) ? OrderedJson{{"__float__", x > 0 ? "Infinity" : "-Infinity"}}
                         : OrderedJson(shortest(x));
  };
  return OrderedJson::array({number(m.dt_low), number(m.dt_high)});
}

}  // namespace krait::models
