// Vision Mamba (Zhu et al. 2024): squares of an image as tokens, a class token in their middle, blocks that
// read both ways, a linear head on the class token.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "krait/nn/mamba1.h"
#include "krait/ops/cross_entropy/cross_entropy.h"

namespace krait::models {

struct VisionConfig {
  int64_t image = 224;  // height and width
  int64_t channels = 3;
  int64_t patch = 16, stride = 16;
  int64_t classes = 1000;
  int64_t n_layer = 24;
  float norm_eps = 1e-5f;
  nn::Mamba1Config mixer;  // d_model and what follows from it

  int64_t grid() const { return (image - patch) / stride + 1; }  // patches of a row
  int64_t patches() const { return grid() * grid(); }
  int64_t class_at() const { return patches() / 2; }  // of patches() + 1 tokens
};

// "vim-tiny", "vim-small", "vim-base"; Error lists the names where there is no such one.
VisionConfig vision_preset(const std::string& name);
std::vector<std::string> vision_preset_names();
void check(const VisionConfig& config);  // Error for sizes that cannot be

class VisionMamba {
 public:
  // Registers the parameters, named as in the published .pth; takes no memory for them.
  explicit VisionMamba(const VisionConfig& config);
  VisionMamba(const VisionMamba&) = delete;

  const VisionConfig& config() const { return config_; }
  nn::ParamSet& params() { return params_; }
  const nn::ParamSet& params() const { return params_; }

  // images (B, channels, image, image) float32, normalised -> logits (B, classes) float32. With `recompute`
  // only the stream at layer borders is kept for backward.
  Tensor logits(Context& c, const Tensor& images, bool recompute = false) const;

  // scale · Σ cross-entropy against labels (B) int32; see ops/cross_entropy.
  ops::CrossEntropyResult loss(Context& c, const Tensor& logits, const Tensor& labels,
                               float scale) const;

 private:
  VisionConfig config_;
  nn::ParamSet params_;
  nn::Param *class_token_, *positions_, *patch_weight_, *patch_bias_;
  std::vector<std::unique_ptr<nn::Block>> blocks_;
  nn::Norm norm_f_;
  nn::Param *head_, *head_bias_;
};

}  // namespace krait::models
