#include "krait/io/vision.h"

#include <gtest/gtest.h>

#include "krait/io/torch_archive.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;
using testing::TempDir;

models::VisionConfig tiny(ops::NormKind norm) {
  models::VisionConfig c = parse_vision_config(
      R"({"model_type": "vim", "image_size": 6, "patch_size": 3, "num_classes": 2,
          "num_hidden_layers": 1, "hidden_size": 4})",
      "tiny");
  c.norm = norm;
  return c;
}

// A checkpoint of weights alone, and one more tensor where that has a name.
struct Checkpoint {
  explicit Checkpoint(ops::NormKind norm, const std::string& more = "") : model(tiny(norm)) {
    model.params().allocate(nn::Purpose::inference, DType::f32);
    model.params().initialize(1);
    std::vector<NamedTensor> tensors;
    for (const nn::Param& p : model.params()) tensors.push_back({p.name, p.value.detach()});
    std::vector<float> values(4);
    if (!more.empty()) tensors.push_back({more, Tensor(values.data(), DType::f32, {4})});
    write_torch_archive(folder / "weights.pth", tensors);
  }
  LoadedVision load() const {
    return load_vision_model(folder.path(), {nn::Purpose::inference, std::nullopt}, false, {6, 3});
  }
  TempDir folder;
  models::VisionMamba model;
};

TEST(VisionFiles, LayerNormsAreThoseOfTheWeights) {
  for (const ops::NormKind norm : {ops::NormKind::rms, ops::NormKind::layer}) {
    const Checkpoint c(norm);
    const LoadedVision read = c.load();
    EXPECT_EQ(read.model->config().norm, norm);
    EXPECT_EQ(read.model->params().numel(), c.model.params().numel());
    const TempDir own;
    save_vision_model(*read.model, own.path(), DType::f32);
    EXPECT_EQ(parse_vision_config(read_file(own / "config.json"), "config.json").norm, norm);
  }
}

// A model that computes something else must not be run as if it did not.
TEST(VisionFiles, RefusesLayersWithMoreInThemThanKraitComputes) {
  for (const char* name : {"layers.0.mixer.gamma", "layers.0.mixer.in_proj.bias", "rope.freqs_cos"})
    EXPECT_NE(error_of([&] { Checkpoint(ops::NormKind::rms, name).load(); }).find(name),
              std::string::npos)
        << name;
  EXPECT_EQ(Checkpoint(ops::NormKind::rms, "dist_token").load().notes.size(), 1u);
}

}  // namespace
}  // namespace krait
