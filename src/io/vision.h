// Vision models as files: the published checkpoint of Vision Mamba's training script (.pth, weights under
// "model" and their moving average under "model_ema") or its weights alone, which has no config: sizes are read off
// the shapes; and Krait's own folder of config.json ("model_type": "vim") and model.safetensors.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "krait/io/model.h"
#include "krait/models/vision_mamba.h"

namespace krait {

// The sizes in a config.json of "model_type": "vim". `where` names the file in messages.
models::VisionConfig parse_vision_config(const std::string& json_text, const std::string& where);

// A .pth file, a folder with one and no config.json, or a folder whose config.json says "vim".
bool is_vision_model(const std::filesystem::path& path);

struct LoadedVision {
  std::unique_ptr<models::VisionMamba> model;
  DType dtype = DType::f32;  // as in LoadedModel
  DType stored = DType::f32;
  std::vector<std::string> notes;
  std::vector<TensorFile> files;
};

// Another size of image, or distance of patches, than a model was trained with; 0: as it was.
struct VisionSize {
  int64_t image = 0, stride = 0;
};

// `average`: the moving average of the weights. A checkpoint does not say its stride: it is the one that
// makes the image 224 pixels wide, else that of patches side by side. Positions learned for another number of
// patches than the config or `size` says are resized (models::resize_positions), with a note.
// Throws Error for a missing or misshapen tensor, with its name, the expected and the found shape.
LoadedVision load_vision_model(const std::filesystem::path& path, const LoadOptions& options,
                               bool average = false, const VisionSize& size = {});

// Writes config.json and model.safetensors into an existing directory.
void save_vision_model(const models::VisionMamba& model, const std::filesystem::path& directory,
                       DType dtype);

}  // namespace krait
