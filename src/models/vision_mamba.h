// Vision Mamba (Zhu et al. 2024): squares of an image as tokens, a class token in their middle, blocks that
// read both ways, a linear head on the class token.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "krait/models/model.h"
#include "krait/nn/mamba1.h"

namespace krait::models {

struct VisionConfig {
  int64_t image = 224;  // height and width
  int64_t channels = 3;
  int64_t patch = 16, stride = 16;
  int64_t classes = 1000;
  bool classes_open = true;  // nobody has said how many: a fresh model has those of its data
  int64_t n_layer = 24;
  ops::NormKind norm = ops::NormKind::rms;  // or layer
  float norm_eps = 1e-5f;
  nn::Mamba1Config mixer;  // d_model and what follows from it
  bool shared = false;     // both directions of time share their parameters but A: see nn::BiMamba
  std::vector<std::string> labels;  // names of the classes; may be empty

  int64_t grid() const { return (image - patch) / stride + 1; }  // patches of a row
  int64_t patches() const { return grid() * grid(); }
  int64_t class_at() const { return patches() / 2; }  // of patches() + 1 tokens
};

// "vim-tiny", "vim-small", "vim-base"; Error lists the names where there is no such one.
VisionConfig vision_preset(const std::string& name);
std::vector<std::string> vision_preset_names();
void check(const VisionConfig& config);  // Error for sizes that cannot be

// Learned positions (1, n² + 1, D), resized for another number of patches: (1, m² + 1, D), float32.
// The grid is resized as a picture is, bicubic (Keys 1981, a = -3/4, at the patches' middles, edges
// repeated), as torch's interpolate does; the position of the class token, in the middle of the
// sequence, stays. (The published fine-tuning took the first row for the class token's; its weights
// were trained after that.)
void resize_positions(const Tensor& from, const Tensor& to);

class VisionMamba : public Model {
 public:
  // Registers the parameters, named as in the published .pth; takes no memory for them.
  explicit VisionMamba(const VisionConfig& config);

  const VisionConfig& config() const { return config_; }
  int64_t n_layer() const override { return config_.n_layer; }

  // Feed: values (B, channels, image, image), normalised; targets (B), classes. outputs (B, classes).
  Tensor outputs(Context& c, const Feed& feed, const Pass& pass) const override;
  Feed sketch(int64_t B, int64_t L) const override;

 private:
  VisionConfig config_;
  nn::Param *class_token_, *positions_, *patch_weight_, *patch_bias_;
  std::vector<std::unique_ptr<nn::Block>> blocks_;
  nn::Norm norm_f_;
  nn::Param *head_, *head_bias_;
};

}  // namespace krait::models
