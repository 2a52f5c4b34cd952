#include "krait/models/mamba1.h"

#include <array>
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/mixers.h"
#include "krait/models/original.h"
#include "krait/models/presets.h"

namespace krait::models {

namespace {

class Mamba1Body : public Body {
 public:
  Mamba1Body(const nn::Mamba1Config& m, const OriginalLayers& o) : mixer(m), layers(o) {}

  void check(const Config& c) const override {
    models::check(mixer);
    layers.check(c);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    nn::Mamba1Config m = mixer;
    m.d_model = c.d_model;
    m.out_rescale = std::sqrt(static_cast<double>(c.n_layer));
    return original_layer(params, c, i, layers, [&](nn::ParamSet& p, const std::string& name) {
      return std::make_unique<nn::Mamba1>(p, name, m);
    });
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    return layout == Layout::huggingface ? huggingface(c) : original(c);
  }

  const nn::Mamba1Config mixer;  // d_model and out_rescale follow from the shell
  const OriginalLayers layers;

 private:
  OrderedJson huggingface(const Config& c) const;
  OrderedJson original(const Config& c) const;
};

Config with_layers(Config c, const nn::Mamba1Config& mixer, const OriginalLayers& layers) {
  c.architecture = (mixer.inner_norm == nn::InnerNorm::plain ? kFalconMamba : kMamba1).name;
  nn::Mamba1Config m = mixer;
  m.d_model = c.d_model;
  c.body = std::make_shared<Mamba1Body>(m, layers);
  return c;
}

int64_t default_rank(int64_t D) { return (D + 15) / 16; }

void read_dt(const JsonView& j, const char* prefix, nn::Mamba1Config& m) {
  const auto key = [&](const char* name) { return std::string(prefix) + name; };
  m.dt_min = j.number(key("_min"), m.dt_min);
  m.dt_max = j.number(key("_max"), m.dt_max);
  m.dt_scale = j.number(key("_scale"), m.dt_scale);
}

bool is_constant(const JsonView& j, const std::string& key) {
  const std::string scheme = j.text(key, "random");
  if (scheme != "random" && scheme != "constant") j.wrong(key, "\"random\" or \"constant\"");
  return scheme == "constant";
}

// "mamba", and "falcon_mamba": the same with norms of dt, B and C.
Config read_huggingface(const JsonView& j) {
  Config c;
  const bool falcon = j.text("model_type") == kFalconMamba.name;
  expect_text(j, "hidden_act", "silu");
  c.vocab_size = j.integer("vocab_size", 50280);
  c.d_model = j.integer("hidden_size", falcon ? 4096 : 768);
  c.n_layer = j.integer("num_hidden_layers", 32);
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", true);
  c.eos_ids = eos_ids(j);
  nn::Mamba1Config m;
  m.inner_norm = falcon ? nn::InnerNorm::plain : nn::InnerNorm::none;
  m.inner_eps = static_cast<float>(j.number("mixer_rms_eps", 1e-6));
  m.d_state = j.integer("state_size", 16);
  m.d_conv = j.integer("conv_kernel", 4);
  m.d_inner = j.integer("intermediate_size", expanded(j.number("expand", 2), c.d_model));
  m.dt_rank = read_dt_rank(j, "time_step_rank", c.d_model);
  m.conv_bias = j.boolean("use_conv_bias", true);
  m.proj_bias = j.boolean("use_bias", false);
  read_dt(j, "time_step", m);
  m.dt_floor = j.number("time_step_floor", m.dt_floor);
  m.dt_constant = is_constant(j, "time_step_init_scheme");
  return with_mamba1(c, m);
}

Config read_original(const JsonView& j) {
  const Config c = read_original_shell(j);
  const Json usual = Json::object();
  return with_layers(
      c,
      read_original_mamba1(j.has("ssm_cfg") ? j.object("ssm_cfg") : JsonView(usual, "ssm_cfg"),
                           c.d_model),
      read_original_layers(j, c));
}

OrderedJson Mamba1Body::huggingface(const Config& c) const {
  const nn::Mamba1Config& m = mixer;
  require(c.norm == ops::NormKind::rms,
          "the Hugging Face layout of Mamba has root-mean-square norms only; this model has layer "
          "norms: write the original layout");
  require(layers.attention_at.empty() && layers.d_intermediate == 0,
          "the Hugging Face layout of Mamba has no attention or MLP layers: write the original "
          "layout");
  OrderedJson j;
  const bool falcon = m.inner_norm == nn::InnerNorm::plain;
  j["architectures"] = OrderedJson::array({falcon ? "FalconMambaForCausalLM" : "MambaForCausalLM"});
  write_shell(j, c);
  j["intermediate_size"] = m.d_inner;
  j["expand"] = expansion(m.d_inner, c.d_model);
  j["state_size"] = m.d_state;
  j["conv_kernel"] = m.d_conv;
  j["time_step_rank"] = m.dt_rank;
  j["use_bias"] = m.proj_bias;
  j["use_conv_bias"] = m.conv_bias;
  j["hidden_act"] = "silu";
  j["layer_norm_epsilon"] = shortest(c.norm_eps);
  if (falcon) j["mixer_rms_eps"] = shortest(m.inner_eps);
  j["residual_in_fp32"] = true;
  // It is how the weights were drawn, but transformers 5.24 would draw out_proj again after loading.
  j["rescale_prenorm_residual"] = false;
  j["tie_word_embeddings"] = c.tie_embeddings;
  j["time_step_min"] = m.dt_min;
  j["time_step_max"] = m.dt_max;
  j["time_step_floor"] = m.dt_floor;
  j["time_step_scale"] = m.dt_scale;
  j["time_step_init_scheme"] = m.dt_constant ? "constant" : "random";
  write_eos(j, c);
  return j;
}

OrderedJson Mamba1Body::original(const Config& c) const {
  const nn::Mamba1Config& m = mixer;
  require(m.inner_norm == nn::InnerNorm::none,
          "the original layout has no norms of dt, B and C, as Falcon-Mamba has");
  // Only what differs from the defaults, as published files do.
  OrderedJson s = OrderedJson::object();
  const nn::Mamba1Config usual;
  if (m.d_state != usual.d_state) s["d_state"] = m.d_state;
  if (m.d_conv != usual.d_conv) s["d_conv"] = m.d_conv;
  if (m.d_inner != 2 * c.d_model) s["expand"] = expansion(m.d_inner, c.d_model);
  if (m.dt_rank != default_rank(c.d_model)) s["dt_rank"] = m.dt_rank;
  if (!m.conv_bias) s["conv_bias"] = false;
  if (m.proj_bias) s["bias"] = true;
  if (m.dt_min != usual.dt_min) s["dt_min"] = m.dt_min;
  if (m.dt_max != usual.dt_max) s["dt_max"] = m.dt_max;
  if (m.dt_scale != usual.dt_scale) s["dt_scale"] = m.dt_scale;
  if (m.dt_floor != usual.dt_floor) s["dt_init_floor"] = m.dt_floor;
  if (m.dt_constant) s["dt_init"] = "constant";
  return write_original(c, layers, s);
}

bool claims(const JsonView& j, Layout layout) {
  if (layout == Layout::huggingface) return j.text("model_type") == "mamba";
  if (const Json* attention = j.find("attn_layer_idx");
      attention && static_cast<int64_t>(attention->size()) >= j.integer("n_layer", 1))
    return false;  // Transformer++
  return !j.has("ssm_cfg") || j.object("ssm_cfg").text("layer", "Mamba1") == "Mamba1";
}

Config read(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface ? read_huggingface(j) : read_original(j);
}

// What can be read off the weights' shapes: hub configs are wrong now and then.
void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  nn::Mamba1Config m = mamba1_of(c);
  OriginalLayers layers = static_cast<const Mamba1Body&>(*c.body).layers;
  const std::string layer = layers.first_ssm() + "mixer.";
  if (const Shape* s = shape_of(layer + "A_log"); s && s->rank == 2) {
    follow_weights("d_inner", m.d_inner, (*s)[0], notes);
    follow_weights("d_state", m.d_state, (*s)[1], notes);
  }
  if (const Shape* s = shape_of(layer + "dt_proj.weight"); s && s->rank == 2)
    follow_weights("dt_rank", m.dt_rank, (*s)[1], notes);
  if (const Shape* s = shape_of(layer + "conv1d.weight"); s && s->rank == 3)
    follow_weights("d_conv", m.d_conv, (*s)[2], notes);
  follow_weights("conv_bias", m.conv_bias, shape_of(layer + "conv1d.bias") != nullptr, notes);
  follow_weights("bias", m.proj_bias, shape_of(layer + "in_proj.bias") != nullptr, notes);
  follow_layers(layers, shape_of, notes);
  follow_original(c, shape_of, notes);
  c = with_layers(c, m, layers);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, vocab_size, vocab_multiple;
};

// Published sizes (Mamba: table 12 of the paper, twice the layers; MambaByte: section 4), and small ones
// over bytes to learn with.
constexpr std::array kPresets = {
    Preset{"mamba-130m", 768, 24, 50277, 8},    Preset{"mamba-370m", 1024, 48, 50277, 8},
    Preset{"mamba-790m", 1536, 48, 50277, 8},   Preset{"mamba-1.4b", 2048, 48, 50277, 8},
    Preset{"mamba-2.8b", 2560, 64, 50277, 8},   Preset{"mambabyte-353m", 1024, 53, 256, 1},
    Preset{"mambabyte-972m", 1792, 48, 256, 1}, Preset{"byte-tiny", 128, 4, 256, 1},
    Preset{"byte-small", 256, 6, 256, 1},       Preset{"byte-medium", 512, 12, 256, 1},
};

std::vector<std::string> presets() { return names_of(kPresets); }

Config preset_of(const std::string& name) {
  const Preset& p = named(kPresets, name);
  return mamba_config(p.d_model, p.n_layer, p.vocab_size, p.vocab_multiple);
}

}  // namespace

const Architecture kMamba1 = {"mamba", claims, read, presets, preset_of, follow};

const Architecture kFalconMamba = {"falcon_mamba",
                                   [](const JsonView& j, Layout layout) {
                                     return layout == Layout::huggingface &&
                                            j.text("model_type") == "falcon_mamba";
                                   },
                                   read,
                                   [] { return std::vector<std::string>{"falcon-mamba-7b"}; },
                                   [](const std::string&) {
                                     Config c = mamba_config(4096, 64, 65024, 1);
                                     c.tie_embeddings = false;
                                     nn::Mamba1Config m = mamba1_of(c);
                                     m.inner_norm = nn::InnerNorm::plain;
                                     return with_mamba1(c, m);
                                   },
                                   follow};

Config mamba_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple) {
  Config c;
  c.d_model = d_model;
  c.n_layer = n_layer;
  c.vocab_size = vocab_size;
  c.vocab_multiple = vocab_multiple;
  nn::Mamba1Config m;
  m.d_inner = 2 * d_model;
  m.dt_rank = default_rank(d_model);
  return with_mamba1(c, m);
}

const nn::Mamba1Config& mamba1_of(const Config& config) {
  const auto* body = dynamic_cast<const Mamba1Body*>(config.body.get());
  require(body != nullptr, "expected a Mamba-1 model, got the architecture \"{}\"",
          config.architecture);
  return body->mixer;
}

nn::Mamba1Config read_original_mamba1(const JsonView& s, int64_t d_model) {
  nn::Mamba1Config m;
  m.d_model = d_model;
  m.d_inner = expanded(s.number("expand", 2), d_model);
  m.d_state = s.integer("d_state", m.d_state);
  m.d_conv = s.integer("d_conv", m.d_conv);
  m.dt_rank = read_dt_rank(s, "dt_rank", d_model);
  m.conv_bias = s.boolean("conv_bias", m.conv_bias);
  m.proj_bias = s.boolean("bias", m.proj_bias);
  read_dt(s, "dt", m);
  m.dt_floor = s.number("dt_init_floor", m.dt_floor);
  m.dt_constant = is_constant(s, "dt_init");
  return m;
}

void check(const nn::Mamba1Config& m) {
  check_size("d_inner", m.d_inner, 1, 1 << 22);
  check_size("d_state", m.d_state, 1, 256);
  check_size("dt_rank", m.dt_rank, 1, 1 << 20);
  check_size("d_conv", m.d_conv, 2, 8);
}

int64_t read_dt_rank(const JsonView& j, const std::string& key, int64_t D) {
  const Json* v = j.find(key);
  if (!v || (v->is_string() && v->get<std::string>() == "auto")) return default_rank(D);
  const int64_t rank = j.integer(key);
  if (rank <= 0) j.wrong(key, "\"auto\" or a positive integer");
  return rank;
}

Config with_mamba1(Config config, const nn::Mamba1Config& mixer) {
  return with_layers(std::move(config), mixer, {});
}

}  // namespace krait::models
