// tiny_model FOLDER: writes a small random byte model there, for tests that need one on disk.
#include <krait/krait.h>

#include <filesystem>

int main(int, char** argv) {
  krait::models::LanguageModel model(krait::models::preset("byte-tiny"));
  model.params().allocate(krait::nn::Purpose::inference, krait::DType::f32);
  model.params().initialize(20);
  krait::write_directory(argv[1], [&](const std::filesystem::path& folder) {
    krait::save_model(model, folder, krait::Layout::huggingface, krait::DType::f32);
  });
}
