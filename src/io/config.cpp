#include "krait/io/config.h"

#include <cmath>

#include "krait/io/json.h"

namespace krait {

namespace {

using models::Config;

// What both layouts share: sizes that follow from others, and the published initial values.
void derive(Config& c) {
  c.mamba.d_model = c.d_model;
  if (c.mamba.dt_rank == 0) c.mamba.dt_rank = (c.d_model + 15) / 16;
  c.mamba.out_rescale = std::sqrt(static_cast<double>(c.n_layer));
}

// E = expand · D, rounded down; 0, which check() refuses, where that is no size.
int64_t expanded(double expand, int64_t D) {
  const double E = expand * static_cast<double>(D);
  return E >= 1 && E < 1e12 ? static_cast<int64_t>(E) : 0;
}

void read_dt(const JsonView& j, const char* prefix, nn::Mamba1Config& m) {
  const auto key = [&](const char* name) { return std::string(prefix) + name; };
  m.dt_min = j.number(key("_min"), m.dt_min);
  m.dt_max = j.number(key("_max"), m.dt_max);
  m.dt_scale = j.number(key("_scale"), m.dt_scale);
}

// "auto" or a number; 0 means auto here.
int64_t rank_or_auto(const JsonView& j, const std::string& key) {
  const Json* v = j.find(key);
  if (!v || (v->is_string() && v->get<std::string>() == "auto")) return 0;
  const int64_t rank = j.integer(key);
  if (rank <= 0) j.wrong(key, "\"auto\" or a positive integer");
  return rank;
}

bool is_constant(const JsonView& j, const std::string& key) {
  const std::string scheme = j.text(key, "random");
  if (scheme != "random" && scheme != "constant") j.wrong(key, "\"random\" or \"constant\"");
  return scheme == "constant";
}

Config from_huggingface(const JsonView& j) {
  Config c;
  c.architecture = j.text("model_type");
  if (c.architecture != "mamba")
    j.wrong("model_type", "an architecture that Krait knows: \"mamba\"");
  if (j.text("hidden_act", "silu") != "silu") j.wrong("hidden_act", "\"silu\"");
  c.vocab_size = j.integer("vocab_size", 50280);
  c.d_model = j.integer("hidden_size", 768);
  c.n_layer = j.integer("num_hidden_layers", 32);
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", true);
  nn::Mamba1Config& m = c.mamba;
  m.d_state = j.integer("state_size", 16);
  m.d_conv = j.integer("conv_kernel", 4);
  m.d_inner = j.integer("intermediate_size", expanded(j.number("expand", 2), c.d_model));
  m.dt_rank = rank_or_auto(j, "time_step_rank");
  m.conv_bias = j.boolean("use_conv_bias", true);
  m.proj_bias = j.boolean("use_bias", false);
  read_dt(j, "time_step", m);
  m.dt_floor = j.number("time_step_floor", m.dt_floor);
  m.dt_constant = is_constant(j, "time_step_init_scheme");
  if (const Json* eos = j.find("eos_token_id")) {
    for (const Json& id : eos->is_array() ? *eos : Json::array({*eos})) {
      if (!id.is_number_integer()) j.wrong("eos_token_id", "an integer or a list of integers");
      c.eos_ids.push_back(id.get<int32_t>());
    }
  }
  derive(c);
  return c;
}

Config from_original(const JsonView& j) {
  Config c;
  c.d_model = j.integer("d_model");
  c.n_layer = j.integer("n_layer");
  c.vocab_size = j.integer("vocab_size");
  c.vocab_multiple = j.integer("pad_vocab_size_multiple", 8);
  c.norm = j.boolean("rms_norm", true) ? ops::NormKind::rms : ops::NormKind::layer;
  c.tie_embeddings = j.boolean("tie_embeddings", true);
  if (j.integer("d_intermediate", 0) != 0)
    j.wrong("d_intermediate", "0: Mamba-1 has no MLP layers");
  if (const Json* attention = j.find("attn_layer_idx"); attention && !attention->empty())
    j.wrong("attn_layer_idx", "an empty list: Mamba-1 has no attention layers");
  nn::Mamba1Config& m = c.mamba;
  double expand = 2;
  if (j.has("ssm_cfg")) {
    const JsonView s = j.object("ssm_cfg");
    if (s.text("layer", "Mamba1") != "Mamba1")
      s.wrong("layer", "a layer that Krait knows: \"Mamba1\"");
    m.d_state = s.integer("d_state", m.d_state);
    m.d_conv = s.integer("d_conv", m.d_conv);
    expand = s.number("expand", expand);
    m.dt_rank = rank_or_auto(s, "dt_rank");
    m.conv_bias = s.boolean("conv_bias", m.conv_bias);
    m.proj_bias = s.boolean("bias", m.proj_bias);
    read_dt(s, "dt", m);
    m.dt_floor = s.number("dt_init_floor", m.dt_floor);
    m.dt_constant = is_constant(s, "dt_init");
  }
  m.d_inner = expanded(expand, c.d_model);
  derive(c);
  return c;
}

}  // namespace

Config parse_config(const std::string& json_text, const std::string& where, Layout& layout) {
  const Json json = parse_json(json_text, where);
  const JsonView j(json, where);
  layout = j.has("model_type") ? Layout::huggingface : Layout::original;
  Config c = layout == Layout::huggingface ? from_huggingface(j) : from_original(j);
  try {
    check(c);
  } catch (const Error& e) {
    fail("{}: {}", where, e.what());
  }
  return c;
}

static nlohmann::ordered_json huggingface_json(const Config& c, DType dtype) {
  const nn::Mamba1Config& m = c.mamba;
  require(c.norm == ops::NormKind::rms,
          "the Hugging Face layout of Mamba has root-mean-square norms only; this model has layer "
          "norms: "
          "write the original layout");
  nlohmann::ordered_json j;
  j["architectures"] = nlohmann::ordered_json::array({"MambaForCausalLM"});
  j["model_type"] = "mamba";
  j["vocab_size"] = c.padded_vocab();
  j["hidden_size"] = c.d_model;
  j["num_hidden_layers"] = c.n_layer;
  j["intermediate_size"] = m.d_inner;
  j["expand"] =
      m.d_inner % c.d_model == 0
          ? nlohmann::ordered_json(m.d_inner / c.d_model)
          : nlohmann::ordered_json(static_cast<double>(m.d_inner) / static_cast<double>(c.d_model));
  j["state_size"] = m.d_state;
  j["conv_kernel"] = m.d_conv;
  j["time_step_rank"] = m.dt_rank;
  j["use_bias"] = m.proj_bias;
  j["use_conv_bias"] = m.conv_bias;
  j["hidden_act"] = "silu";
  j["layer_norm_epsilon"] = static_cast<double>(std::stod(fmt::format("{}", c.norm_eps)));
  j["residual_in_fp32"] = true;
  // It is how the weights were drawn, but transformers 5.24 would draw out_proj again after loading.
  j["rescale_prenorm_residual"] = false;
  j["tie_word_embeddings"] = c.tie_embeddings;
  j["time_step_min"] = m.dt_min;
  j["time_step_max"] = m.dt_max;
  j["time_step_floor"] = m.dt_floor;
  j["time_step_scale"] = m.dt_scale;
  j["time_step_init_scheme"] = m.dt_constant ? "constant" : "random";
  const nlohmann::ordered_json no_id;
  j["eos_token_id"] = c.eos_ids.empty()       ? no_id
                      : c.eos_ids.size() == 1 ? nlohmann::ordered_json(c.eos_ids[0])
                                              : nlohmann::ordered_json(c.eos_ids);
  j["bos_token_id"] = j["pad_token_id"] =
      c.eos_ids.empty() ? no_id : nlohmann::ordered_json(c.eos_ids[0]);
  j["torch_dtype"] = name_of(dtype);
  return j;
}

static nlohmann::ordered_json original_json(const Config& c) {
  const nn::Mamba1Config& m = c.mamba;
  require(c.norm_eps == 1e-5f,
          "the original layout has norms with epsilon 1e-5 only; this model's is {}", c.norm_eps);
  // Only what differs from the defaults, as published files do.
  nlohmann::ordered_json s = nlohmann::ordered_json::object();
  const nn::Mamba1Config usual;
  if (m.d_state != usual.d_state) s["d_state"] = m.d_state;
  if (m.d_conv != usual.d_conv) s["d_conv"] = m.d_conv;
  if (m.d_inner != 2 * c.d_model)
    s["expand"] = static_cast<double>(m.d_inner) / static_cast<double>(c.d_model);
  if (m.dt_rank != (c.d_model + 15) / 16) s["dt_rank"] = m.dt_rank;
  if (!m.conv_bias) s["conv_bias"] = false;
  if (m.proj_bias) s["bias"] = true;
  if (m.dt_min != usual.dt_min) s["dt_min"] = m.dt_min;
  if (m.dt_max != usual.dt_max) s["dt_max"] = m.dt_max;
  if (m.dt_scale != usual.dt_scale) s["dt_scale"] = m.dt_scale;
  if (m.dt_floor != usual.dt_floor) s["dt_init_floor"] = m.dt_floor;
  if (m.dt_constant) s["dt_init"] = "constant";
  nlohmann::ordered_json j;
  j["d_model"] = c.d_model;
  j["n_layer"] = c.n_layer;
  j["vocab_size"] = c.vocab_size;
  j["ssm_cfg"] = s;
  j["rms_norm"] = c.norm == ops::NormKind::rms;
  j["residual_in_fp32"] = true;
  j["fused_add_norm"] = true;
  j["pad_vocab_size_multiple"] = c.vocab_multiple;
  j["tie_embeddings"] = c.tie_embeddings;
  return j;
}

std::string config_json(const Config& config, Layout layout, DType dtype) {
  return (layout == Layout::huggingface ? huggingface_json(config, dtype) : original_json(config))
             .dump(2) +
         "\n";
}

}  // namespace krait
