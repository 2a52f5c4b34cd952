#include "krait/models/architecture.h"

#include <algorithm>

#include "krait/base/error.h"

namespace krait::models {

const std::vector<const Architecture*>& architectures() {
  // One a line.
  // clang-format off
  static const std::vector<const Architecture*> all = {
      &kMoeMamba,
      &kMamba1,
      &kFalconMamba,
      &kMamba2,
      &kTransformerpp,
      &kMamba3,
      &kMamba2Hybrid,
      &kLlama,
      &kGptNeox,
      &kJamba,
      &kBamba,
      &kNemotronH,
      &kFalconH1,
      &kZamba2,
      &kS4,
      &kBlocks,
  };
  // clang-format on
  return all;
}

const Architecture& architecture(const std::string& name) {
  for (const Architecture* a : architectures())
    if (name == a->name) return *a;
  fail("no architecture is named \"{}\"", name);
}

Config preset(const std::string& name) {
  for (const Architecture* a : architectures()) {
    const std::vector<std::string> names = a->presets();
    if (std::find(names.begin(), names.end(), name) != names.end()) return a->preset(name);
  }
  fail("no preset is named \"{}\"; known: {}", name, fmt::join(preset_names(), ", "));
}

std::vector<std::string> preset_names() {
  std::vector<std::string> all;
  for (const Architecture* a : architectures())
    for (const std::string& name : a->presets()) all.push_back(name);
  return all;
}

std::vector<std::unique_ptr<nn::Block>> Body::layers(nn::ParamSet& params, const Config& c) const {
  std::vector<std::unique_ptr<nn::Block>> all;
  for (int64_t i = 0; i < c.n_layer; ++i) all.push_back(layer(params, c, i));
  return all;
}

std::unique_ptr<nn::Block> Body::layer(nn::ParamSet&, const Config& c, int64_t i) const {
  fail("{}: layer {} is not made by itself", c.architecture, i);
}

void check_size(const char* what, int64_t value, int64_t least, int64_t most) {
  require(value >= least && value <= most, "config: {}: expected a number from {} to {}, got {}",
          what, least, most, value);
}

void check(const Config& c) {
  check_size("vocab_size", c.vocab_size, 1, int64_t{1} << 31);
  check_size("vocabulary multiple", c.vocab_multiple, 1, int64_t{1} << 31);
  check_size("d_model", c.d_model, 1, 1 << 20);
  check_size("n_layer", c.n_layer, 1, 1 << 14);
  check_size("input_size", c.inputs, 0, 1 << 20);
  const bool language = c.task.kind == Task::language;
  require(!language || c.inputs == 0, "config: series are read, and no head says what of them");
  if (!language) check_size("num_labels", c.task.outputs, 1, 1 << 24);
  require(c.task.labels.empty() || static_cast<int64_t>(c.task.labels.size()) == c.task.outputs,
          "config: expected names for {} classes, got {}", c.task.outputs, c.task.labels.size());
  c.body->check(c);
}

nn::Norm make_norm(nn::ParamSet& params, const std::string& name, const Config& c) {
  return nn::Norm::make(params, name, c.norm, c.d_model, c.norm_eps);
}

template <class T>
static void follow(const char* what, T& value, T found, std::vector<std::string>& notes) {
  if (value == found) return;
  notes.push_back(
      fmt::format("config.json says {} = {}, the weights say {}: the weights are followed", what,
                  value, found));
  value = found;
}

void follow_weights(const char* what, int64_t& value, int64_t found,
                    std::vector<std::string>& notes) {
  follow(what, value, found, notes);
}

void follow_weights(const char* what, bool& value, bool found, std::vector<std::string>& notes) {
  follow(what, value, found, notes);
}

std::vector<int32_t> eos_ids(const JsonView& j) {
  std::vector<int32_t> ids;
  const Json* eos = j.find("eos_token_id");
  if (!eos) return ids;
  for (const Json& id : eos->is_array() ? *eos : Json::array({*eos})) {
    if (!id.is_number_integer()) j.wrong("eos_token_id", "an integer or a list of integers");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void write_shell(OrderedJson& j, const Config& c) {
  j["model_type"] = c.architecture;
  j["vocab_size"] = c.padded_vocab();
  j["hidden_size"] = c.d_model;
  j["num_hidden_layers"] = c.n_layer;
}

void read_shell(const JsonView& j, Config& c) {
  c.vocab_size = j.integer("vocab_size", c.vocab_size);
  c.d_model = j.integer("hidden_size", c.d_model);
  c.n_layer = j.integer("num_hidden_layers", c.n_layer);
  c.norm_eps = static_cast<float>(j.number("rms_norm_eps", double{c.norm_eps}));
  c.tie_embeddings = j.boolean("tie_word_embeddings", c.tie_embeddings);
  c.eos_ids = eos_ids(j);
}

OrderedJson huggingface_json(const Config& c, Layout layout, const char* title,
                             const char* transformers_class) {
  require(layout == Layout::huggingface, "{} has the Hugging Face layout only", title);
  OrderedJson j;
  j["architectures"] = OrderedJson::array({transformers_class});
  write_shell(j, c);
  return j;
}

void expect_text(const JsonView& j, const char* key, const char* text) {
  if (j.text(key, text) != text) j.wrong(key, fmt::format("\"{}\"", text));
}

std::vector<int64_t> layer_list(const JsonView& j, const char* key) {
  std::vector<int64_t> layers;
  const Json* list = j.find(key);
  if (!list) return layers;
  if (!list->is_array()) j.wrong(key, "a list of layers");
  for (const Json& i : *list) {
    if (!i.is_number_integer()) j.wrong(key, "a list of layers");
    layers.push_back(i.get<int64_t>());
  }
  return layers;
}

std::vector<std::string> read_labels(const JsonView& j) {
  std::vector<std::string> labels;
  if (!j.has("id2label")) return labels;
  const JsonView names = j.object("id2label");
  for (size_t i = 0; i < names.json().size(); ++i) labels.push_back(names.text(std::to_string(i)));
  return labels;
}

void write_labels(OrderedJson& j, const std::vector<std::string>& labels) {
  for (size_t i = 0; i < labels.size(); ++i) j["id2label"][std::to_string(i)] = labels[i];
}

void write_eos(OrderedJson& j, const Config& c) {
  const OrderedJson none;
  j["eos_token_id"] = c.eos_ids.empty()       ? none
                      : c.eos_ids.size() == 1 ? OrderedJson(c.eos_ids[0])
                                              : OrderedJson(c.eos_ids);
  j["bos_token_id"] = j["pad_token_id"] = c.eos_ids.empty() ? none : OrderedJson(c.eos_ids[0]);
}

std::vector<double> numbers(const JsonView& j, const char* key, std::vector<double> fallback) {
  const Json* v = j.find(key);
  if (!v) return fallback;
  if (!v->is_array() || v->size() != fallback.size())
    j.wrong(key, fmt::format("a list of {} numbers", fallback.size()));
  for (size_t i = 0; i < fallback.size(); ++i) {
    const Json named = {{"number", v->at(i)}};
    fallback[i] = JsonView(named, fmt::format("{}: \"{}\"", j.where(), key)).number("number");
  }
  return fallback;
}

int64_t expanded(double expand, int64_t D) {
  const double E = expand * static_cast<double>(D);
  return E >= 1 && E < 1e12 ? static_cast<int64_t>(E) : 0;
}

OrderedJson expansion(int64_t E, int64_t D) {
  if (E % D == 0) return E / D;
  return static_cast<double>(E) / static_cast<double>(D);
}

double shortest(float value) { return std::stod(fmt::format("{}", value)); }

}  // namespace krait::models
