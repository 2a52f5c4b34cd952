// krait inspect: what a model is, and what it would take to run or train it. Nothing of the weights is read
// but their sizes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "krait/base/system.h"
#include "krait/cli/commands.h"
#include "krait/infer/memory.h"
#include "krait/infer/session.h"
#include "krait/io/any_model.h"
#include "krait/models/architecture.h"
#include "krait/train/memory.h"

namespace krait::cli {

namespace {

constexpr int64_t kLength = 512;

struct Args {
  std::string model;
  bool tensors = false;
  int64_t batch = 1;
  int64_t length = 0;  // 0: kLength, or the longest that the model can be trained on
};

// A folder with weights, or only a config: a config.json by itself, or that of a preset.
LoadedModel describe(const std::string& model, const models::Config& config,
                     std::optional<DType> dtype) {
  if (std::filesystem::is_directory(model)) {
    LoadOptions options;
    options.dtype = dtype;
    options.sizes_only = true;
    return load_model(model, options);
  }
  LoadedModel fresh;
  fresh.dtype = fresh.stored = dtype.value_or(DType::f32);
  fresh.model = std::make_unique<models::LanguageModel>(config);
  fresh.model->params().allocate(nn::Purpose::inference, fresh.dtype, /*planning=*/true);
  return fresh;
}

OrderedJson tensor_list(const nn::ParamSet& params) {
  OrderedJson list = OrderedJson::array();
  for (const nn::Param& p : params) {
    OrderedJson shape = OrderedJson::array();
    for (int i = 0; i < p.shape.rank; ++i) shape.push_back(p.shape[i]);
    list.push_back({{"name", p.name}, {"shape", shape}, {"meaning", p.meaning}});
  }
  return list;
}

// What the state grows by with every token; 0 for most.
size_t state_bytes_per_token(const models::LanguageModel& model) {
  return nn::state_bytes(model.state_parts(), 1) - nn::state_bytes(model.state_parts());
}

OrderedJson generation_memory(const LoadedModel& loaded, const Args& a) {
  SessionOptions o;
  o.batch = a.batch;
  o.activation = loaded.dtype;
  o.context = a.length;
  const SessionPlan p = plan_session(*loaded.model, o);
  return {{"weights", p.weights},
          {"state", p.state},
          {"logits", p.logits},
          {"working", p.working},
          {"total", p.total()}};
}

// `model` has no memory yet.
OrderedJson training_memory(models::Model&& model, DType dtype, const Args& a,
                            Recompute recompute) {
  TrainOptions o;
  o.batch_size = a.batch;
  o.seq_len = a.length;
  o.dtype = dtype;
  o.recompute = recompute;
  const TrainingMemory m = plan_training(model, o);
  return {{"parameters", m.parameters}, {"step", m.step}, {"total", m.total()}};
}

// `make` gives the model anew, without memory.
template <class Make>
OrderedJson memory_plan(const Make& make, DType dtype, const Args& a,
                        const OrderedJson& generation) {
  const size_t free = available_memory();
  return {{"batch", a.batch},
          {"length", a.length},
          {"dtype", name_of(dtype)},
          {"generation", generation},
          {"training", training_memory(make(), dtype, a, Recompute::cheap)},
          {"training_recompute_none", training_memory(make(), dtype, a, Recompute::none)},
          {"training_recompute_layer", training_memory(make(), dtype, a, Recompute::layer)},
          {"available", free == SIZE_MAX ? OrderedJson() : OrderedJson(free)}};
}

// What a head says that judges sequences, and of what.
void add_task(const models::Config& c, OrderedJson& j) {
  const models::Task& t = c.task;
  const bool numbers = t.kind == models::Task::regression;
  j["task"] = numbers ? "regression" : "classification";
  j["pooling"] = t.pooling == models::Task::mean    ? "mean"
                 : t.pooling == models::Task::token ? "token"
                                                    : "last";
  j[numbers ? "numbers" : "classes"] = t.outputs;
  if (c.inputs > 0) j["input_size"] = c.inputs;
}

OrderedJson describe_all(const LoadedModel& loaded, Args a) {
  const models::Config& c = loaded.model->config();
  const bool folder = std::filesystem::is_directory(a.model);
  if (a.length == 0) a.length = std::min(kLength, loaded.model->longest());
  OrderedJson j = {{"architecture", c.architecture},
                   {"parameters", loaded.model->params().numel()},
                   {"layout", !folder                                ? OrderedJson()
                              : loaded.layout == Layout::huggingface ? "huggingface"
                                                                     : "original"},
                   {"dtype", name_of(loaded.stored)},
                   {"d_model", c.d_model},
                   {"n_layer", c.n_layer},
                   {"vocab_size", c.vocab_size},
                   {"padded_vocab_size", c.padded_vocab()},
                   {"norm", c.norm == ops::NormKind::rms     ? "rms"
                            : c.norm == ops::NormKind::layer ? "layer"
                                                             : "batch"},
                   {"tie_embeddings", c.tie_embeddings},
                   {"tensors", loaded.model->params().size()},
                   {"state_bytes", nn::state_bytes(loaded.model->state_parts())},
                   {"state_bytes_per_token", state_bytes_per_token(*loaded.model)},
                   {"hash", folder ? OrderedJson(loaded.hash) : OrderedJson()}};
  if (loaded.model->judges_sequences()) add_task(c, j);
  j["memory"] =
      memory_plan([&] { return models::LanguageModel(c); }, loaded.dtype, a,
                  loaded.model->judges_sequences() ? OrderedJson() : generation_memory(loaded, a));
  j["config"] = c.body->json(c, c.layout);
  j["notes"] = loaded.notes;
  if (a.tensors) j["tensor_list"] = tensor_list(loaded.model->params());
  return j;
}

OrderedJson describe_vision(Args a, const models::VisionConfig& config,
                            std::optional<DType> dtype) {
  LoadedVision loaded;
  const bool stored = std::filesystem::exists(a.model) && is_vision_model(a.model);
  if (stored) {
    LoadOptions options;
    options.dtype = dtype;
    options.sizes_only = true;
    loaded = load_vision_model(a.model, options);
  } else {
    loaded.model = std::make_unique<models::VisionMamba>(config);
    loaded.dtype = dtype.value_or(DType::f32);
  }
  const models::VisionConfig& c = loaded.model->config();
  OrderedJson j = {{"architecture", "vim"},
                   {"parameters", loaded.model->params().numel()},
                   {"layout", stored ? OrderedJson("huggingface") : OrderedJson()},
                   {"dtype", name_of(loaded.stored)},
                   {"d_model", c.mixer.d_model},
                   {"n_layer", c.n_layer},
                   {"image_size", c.image},
                   {"patch_size", c.patch},
                   {"stride", c.stride},
                   {"tokens", c.patches() + 1},
                   {"classes", c.classes},
                   {"tensors", loaded.model->params().size()},
                   {"state_bytes", 0}};
  a.length = c.patches() + 1;
  j["memory"] = memory_plan([&] { return models::VisionMamba(c); }, loaded.dtype, a, OrderedJson());
  j["notes"] = loaded.notes;
  if (a.tensors) j["tensor_list"] = tensor_list(loaded.model->params());
  return j;
}

void print_memory(const char* what, const OrderedJson& plan) {
  std::string parts;
  for (const auto& [key, bytes] : plan.items())
    if (key != "total")
      parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", key, bytes_text(bytes));
  print_line("  {:<25} {:>10}   ({})", what, bytes_text(plan["total"]), parts);
}

void print_text(const OrderedJson& j) {
  for (const auto& [key, value] : j.items())
    if (!value.is_structured() && !value.is_null())
      print_line("{:<20} {}", key, value.is_string() ? value.get<std::string>() : value.dump());
  if (j.contains("config")) print_line("{:<20} {}", "config", j["config"].dump());
  if (j.contains("memory")) {
    const OrderedJson& m = j["memory"];
    print_line("memory for batch {} and length {} in {}:", m["batch"].dump(), m["length"].dump(),
               m["dtype"].get<std::string>());
    if (!m["generation"].is_null()) print_memory("generation", m["generation"]);
    print_memory("training", m["training"]);
    print_memory("training, recompute none", m["training_recompute_none"]);
    print_memory("training, recompute layer", m["training_recompute_layer"]);
  }
  for (const auto& note : j["notes"]) print_line("note: {}", note.get<std::string>());
  if (!j.contains("tensor_list")) return;
  for (const auto& t : j["tensor_list"])
    print_line("{:<48} {:<18} {}", t["name"].get<std::string>(), t["shape"].dump(),
               t["meaning"].get<std::string>());
}

}  // namespace

Work add_inspect(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  app.add_option("MODEL", a->model, "a model's folder, a config.json, or the name of a preset")
      ->required();
  app.add_flag("--tensors", a->tensors, "each tensor, with its shape and meaning");
  app.add_option("--batch", a->batch, "sequences at once, for the memory plan; default 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_option("--length", a->length,
                 "tokens of a training sequence, for the memory plan; default 512, or the longest "
                 "that the model can be trained on")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  return [a](const Common& common) {
    const std::optional<DType> dtype = common.chosen_dtype();
    const AnyConfig config = read_any_config(a->model);
    const auto* const vision = std::get_if<models::VisionConfig>(&config);
    const OrderedJson j =
        vision ? describe_vision(*a, *vision, dtype)
               : describe_all(describe(a->model, std::get<models::Config>(config), dtype), *a);
    if (common.json) {
      print_json(j);
    } else {
      print_text(j);
    }
    return kDone;
  };
}

}  // namespace krait::cli
