#include "krait/io/any_model.h"

#include <algorithm>

#include "krait/base/json.h"

namespace krait {
namespace fs = std::filesystem;

AnyConfig read_any_config(const std::string& model) {
  const fs::path path = model;
  if (fs::exists(path) && is_vision_model(path)) {
    LoadOptions sizes;
    sizes.sizes_only = true;
    const LoadedVision loaded = load_vision_model(path, sizes);
    return loaded.model->config();
  }
  Layout layout;
  if (fs::is_directory(path)) return read_config(path, layout);
  require(
      !fs::is_regular_file(path) || path.extension() == ".json",
      "{}: expected a model directory (config.json with its weights), a config.json or a preset",
      model);
  if (path.extension() == ".json") {
    const std::string text = read_file(path);
    const Json json = parse_json(text, model);
    if (json.is_object() && json.value("model_type", Json()) == "vim")
      return parse_vision_config(text, model);
    return parse_config(text, model, layout);
  }
  const std::vector<std::string> language = models::preset_names(),
                                 vision = models::vision_preset_names();
  if (std::find(vision.begin(), vision.end(), model) != vision.end())
    return models::vision_preset(model);
  require(std::find(language.begin(), language.end(), model) != language.end(),
          "no preset is named \"{}\"; known: {}, {}", model, fmt::join(language, ", "),
          fmt::join(vision, ", "));
  return models::preset(model);
}

bool judges_examples(const AnyConfig& config) {
  const auto* const language = std::get_if<models::Config>(&config);
  return !language || language->task.kind != models::Task::language;
}

std::unique_ptr<models::Model> make_model(const AnyConfig& config) {
  if (const auto* vision = std::get_if<models::VisionConfig>(&config))
    return std::make_unique<models::VisionMamba>(*vision);
  return std::make_unique<models::LanguageModel>(std::get<models::Config>(config));
}

void refuse_average(bool average, const fs::path& path) {
  require(!average, "{}: only a .pth of Vision Mamba has a moving average of its weights",
          path.string());
}

LoadedAny load_any_model(const fs::path& path, const LoadOptions& options, bool average) {
  LoadedAny any;
  const auto take = [&](auto loaded) {
    any.model = std::move(loaded.model);
    any.dtype = loaded.dtype;
    any.notes = std::move(loaded.notes);
    any.files = std::move(loaded.files);
  };
  if (is_vision_model(path)) {
    take(load_vision_model(path, options, average));
  } else {
    refuse_average(average, path);
    take(load_model(path, options));
  }
  return any;
}

void save_any_model(const models::Model& model, const fs::path& directory, DType dtype) {
  if (const auto* vision = dynamic_cast<const models::VisionMamba*>(&model))
    return save_vision_model(*vision, directory, dtype);
  const auto& language = dynamic_cast<const models::LanguageModel&>(model);
  save_model(language, directory, language.config().layout, dtype);
}

}  // namespace krait
