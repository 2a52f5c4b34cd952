// Vision models as files: the published checkpoint of Vision Mamba's training script (.pth, weights under
// "model" and their moving average under "model_ema"), which has no config: sizes are read off the shapes;
// and Krait's own folder of config.json ("model_type": "vim") and model.safetensors.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "krait/io/model.h"
#include "krait/models/vision_mamba.h"

namespace krait {

// A .pth file, a folder with one and no config.json, or a folder whose config.json says "vim".
bool is_vision_model(const std::filesystem::path& path);

struct LoadedVision {
  std::unique_ptr<models::VisionMamba> model;
  DType dtype = DType::f32;  // as in LoadedModel
  DType stored = DType::f32;
  std::vector<std::string> notes;
  std::vector<TensorFile> files;
};

// `average`: the moving average of the weights. A checkpoint does not say its stride: it is the one that
// makes the image 224 pixels wide, else that of patches side by side.
// Throws Error for a missing or misshapen tensor, with its name, the expected and the found shape.
LoadedVision load_vision_model(const std::filesystem::path& path, const LoadOptions& options,
                               bool average = false);

// Writes config.json and model.safetensors into an existing directory.
void save_vision_model(const models::VisionMamba& model, const std::filesystem::path& directory,
                       DType dtype);

}  // namespace krait
