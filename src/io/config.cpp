#include "krait/io/config.h"

#include <algorithm>
#include <array>

#include "krait/base/json.h"
#include "krait/models/architecture.h"

namespace krait {

// Says what no architecture claims.
[[noreturn]] static void refuse(const JsonView& j, Layout layout) {
  std::string known;
  for (const models::Architecture* a : models::architectures())
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", a->name);
  if (layout == Layout::huggingface)
    j.wrong("model_type", "an architecture that Krait knows: " + known);
  const std::string expected = "layers that Krait knows, of one of " + known;
  if (j.has("ssm_cfg")) j.object("ssm_cfg").wrong("layer", expected);
  j.wrong("attn_layer_idx", expected);
}

namespace {

constexpr const char* kJudgeSuffix = "ForSequenceClassification";
constexpr const char* kClassification = "single_label_classification";
constexpr std::array kPoolings = {"last", "mean", "token"};  // in the order of Task::Pooling

// A head that judges sequences, in Hugging Face's words ("problem_type", "num_labels", "id2label"; before
// training only the class's name says it), and in our own "pooling" and "input_size".
void read_task(const JsonView& j, models::Config& c) {
  bool judges = j.has("problem_type");
  if (const Json* names = j.find("architectures"); names && names->is_array() && !names->empty())
    judges = judges || (names->front().is_string() &&
                        names->front().get<std::string>().ends_with(kJudgeSuffix));
  if (!judges) {
    if (j.has("input_size")) j.wrong("input_size", "a \"problem_type\" beside it");
    return;
  }
  models::Task& t = c.task;
  t.labels = models::read_labels(j);
  const std::string fallback =
      j.integer("num_labels", 2) == 1 || t.labels.size() == 1 ? "regression" : kClassification;
  const std::string problem = j.text("problem_type", fallback);
  if (problem == "regression") {
    t.kind = models::Task::regression;
    t.outputs =
        j.integer("num_labels", std::max<int64_t>(1, static_cast<int64_t>(t.labels.size())));
    t.labels.clear();  // they name no classes
  } else {
    if (problem != kClassification)
      j.wrong("problem_type", fmt::format("\"{}\" or \"regression\"", kClassification));
    t.kind = models::Task::classification;
    t.outputs =
        j.integer("num_labels", t.labels.empty() ? 2 : static_cast<int64_t>(t.labels.size()));
  }
  const std::string pooling = j.text("pooling", kPoolings[0]);
  const auto found = std::find(kPoolings.begin(), kPoolings.end(), pooling);
  if (found == kPoolings.end())
    j.wrong("pooling", fmt::format("one of {}", fmt::join(kPoolings, ", ")));
  t.pooling = static_cast<models::Task::Pooling>(found - kPoolings.begin());
  c.inputs = j.integer("input_size", 0);
}

void write_task(OrderedJson& j, const models::Config& c) {
  const models::Task& t = c.task;
  if (t.kind == models::Task::language) return;
  if (j.contains("architectures")) {
    std::string name = j["architectures"][0].get<std::string>();
    j["architectures"][0] = name.substr(0, name.find("For")) + kJudgeSuffix;
  }
  j["problem_type"] = t.kind == models::Task::regression ? "regression" : kClassification;
  j["num_labels"] = t.outputs;
  models::write_labels(j, t.labels);
  j["pooling"] = kPoolings[static_cast<size_t>(t.pooling)];
  if (c.inputs > 0) j["input_size"] = c.inputs;
}

}  // namespace

models::Config parse_config(const std::string& json_text, const std::string& where,
                            Layout& layout) {
  const Json json = parse_json(json_text, where);
  const JsonView j(json, where);
  layout = j.has("model_type") ? Layout::huggingface : Layout::original;
  for (const models::Architecture* a : models::architectures()) {
    if (!a->claims(j, layout)) continue;
    models::Config c = a->read(j, layout);
    c.layout = layout;
    read_task(j, c);
    try {
      check(c);
    } catch (const Error& e) {
      fail("{}: {}", where, e.what());
    }
    return c;
  }
  refuse(j, layout);
}

std::string config_json(const models::Config& config, Layout layout, DType dtype) {
  OrderedJson j = config.body->json(config, layout);
  write_task(j, config);
  if (layout == Layout::huggingface) j["torch_dtype"] = name_of(dtype);
  return j.dump(2) + "\n";
}

}  // namespace krait
