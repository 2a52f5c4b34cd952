// Model directories: a config.json with its weights, in the Hugging Face layout (model.safetensors or
// shards) or the original state-spaces one (pytorch_model.bin).
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "krait/io/config.h"
#include "krait/io/tensor_file.h"
#include "krait/models/language_model.h"

namespace krait {

struct LoadOptions {
  nn::Purpose purpose = nn::Purpose::inference;
  // The type ops compute matrix products in; none: that of the stored weights where it is float32 or
  // bfloat16, else float32. Inference maps the file's memory where it has that type already and converts
  // only the rest; training keeps float32 numbers whatever it is.
  std::optional<DType> dtype;
  Device device;  // that the model is to run on; only the CPU maps the file
  // Takes the place of the task in the config. Parameters of its head that the file lacks are drawn
  // anew, with a note.
  std::optional<models::Task> task = {};
  bool sizes_only = false;  // for planning: parameters get no memory, the values are not read
};

struct LoadedModel {
  std::unique_ptr<models::LanguageModel> model;
  Layout layout = Layout::huggingface;
  DType dtype = DType::f32;   // of the matrices that ops read, and so of activations
  DType stored = DType::f32;  // type of most of the stored elements
  std::vector<std::string>
      notes;         // where config and weights disagree (weights win), tensors not used
  std::string hash;  // names the model in state files: of names, shapes, samples of the weights
  std::vector<TensorFile> files;  // keep mapped weights alive
};

// Whether a folder holds weights, beside config.json or alone.
bool has_weights(const std::filesystem::path& directory);

// Only config.json: for planning and inspecting without the weights.
models::Config read_config(const std::filesystem::path& directory, Layout& layout);

// Throws Error for a missing or misshapen tensor, with its name, the expected and the found shape.
LoadedModel load_model(const std::filesystem::path& directory, const LoadOptions& options);

// Writes config.json and the weights (the float32 numbers of what is trained) into an existing directory, each file
// whole or not at all. `dtype` is that of the stored tensors (in the original layout A_log and D stay float32).
void save_model(const models::LanguageModel& model, const std::filesystem::path& directory,
                Layout layout, DType dtype);

}  // namespace krait
