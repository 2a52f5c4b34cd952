// Models of every kind, told apart by their files.
#pragma once
#include <variant>

#include "krait/io/model.h"
#include "krait/io/vision.h"

namespace krait {

using AnyConfig = std::variant<models::Config, models::VisionConfig>;

// Of a preset's name, a config.json, a model directory, or a .pth of Vision Mamba.
AnyConfig read_any_config(const std::string& model);

// Whether it judges examples as a whole: images, or sequences.
bool judges_examples(const AnyConfig& config);

// Parameters are registered and have no memory.
std::unique_ptr<models::Model> make_model(const AnyConfig& config);

struct LoadedAny {
  std::unique_ptr<models::Model> model;
  DType dtype = DType::f32;  // as in LoadedModel
  std::vector<std::string> notes;
  std::vector<TensorFile> files;
};

// Error where the moving average is asked of a model that is no .pth of Vision Mamba.
void refuse_average(bool average, const std::filesystem::path& path);

// On the device of the options. `average`: as load_vision_model: the moving average of the weights in a .pth
// of Vision Mamba.
LoadedAny load_any_model(const std::filesystem::path& path, const LoadOptions& options,
                         bool average = false);

// Into an existing directory, in the layout of the model's config.
void save_any_model(const models::Model& model, const std::filesystem::path& directory,
                    DType dtype);

}  // namespace krait
