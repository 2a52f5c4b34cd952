#include "krait/models/vision_mamba.h"

#include <array>
#include <cmath>

#include "krait/autograd/segment.h"
#include "krait/models/config.h"
#include "krait/ops/class_token/class_token.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/patches/patches.h"

namespace krait::models {

namespace {

struct Preset {
  const char* name;
  int64_t d_model;
};
constexpr std::array kPresets = {Preset{"vim-tiny", 192}, Preset{"vim-small", 384},
                                 Preset{"vim-base", 768}};

}  // namespace

VisionConfig vision_preset(const std::string& name) {
  for (const Preset& p : kPresets) {
    if (name != p.name) continue;
    VisionConfig c;
    c.mixer.d_model = p.d_model;
    c.mixer.d_inner = 2 * p.d_model;
    c.mixer.dt_rank = (p.d_model + 15) / 16;
    return c;
  }
  fail("no vision model is named \"{}\"; known: {}", name, fmt::join(vision_preset_names(), ", "));
}

std::vector<std::string> vision_preset_names() {
  std::vector<std::string> names;
  for (const Preset& p : kPresets) names.emplace_back(p.name);
  return names;
}

void check(const VisionConfig& c) {
  check_size("image_size", c.image, 1, 1 << 15);
  check_size("channels", c.channels, 1, 1 << 10);
  check_size("patch_size", c.patch, 1, c.image);
  check_size("stride", c.stride, 1, c.image);
  check_size("num_classes", c.classes, 1, 1 << 24);
  check_size("d_model", c.mixer.d_model, 1, 1 << 20);
  check_size("n_layer", c.n_layer, 1, 1 << 14);
  check_size("d_inner", c.mixer.d_inner, 1, 1 << 22);
  check_size("d_state", c.mixer.d_state, 1, 256);
  check_size("dt_rank", c.mixer.dt_rank, 1, 1 << 20);
  check_size("d_conv", c.mixer.d_conv, 2, 8);
}

VisionMamba::VisionMamba(const VisionConfig& config) : config_(config) {
  check(config);
  const int64_t D = config.mixer.d_model, p = config.patch, channels = config.channels;
  const auto vector = [&](const char* name, const Shape& s, nn::Init init) {
    nn::Param& v = params_.add(name, s, std::move(init));
    v.keep_float32 = true;
    return &v;
  };
  const auto matrix = [&](const char* name, const Shape& s, nn::Init init) {
    nn::Param& m = params_.add(name, s, std::move(init));
    m.decay = true;
    return &m;
  };
  class_token_ = vector("cls_token", {1, 1, D}, nn::normal(0.02));
  positions_ = vector("pos_embed", {1, config.patches() + 1, D}, nn::normal(0.02));
  patch_weight_ = matrix("patch_embed.proj.weight", {D, channels, p, p},
                         nn::normal(1.0 / std::sqrt(static_cast<double>(channels * p * p))));
  patch_bias_ = vector("patch_embed.proj.bias", {D}, nn::constant(0.0f));
  nn::Mamba1Config mixer = config.mixer;
  mixer.out_rescale = std::sqrt(static_cast<double>(config.n_layer));
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string name = fmt::format("layers.{}", i);
    auto block = std::make_unique<nn::PreNorm>();
    const nn::Norm norm =
        nn::Norm::make(params_, name + ".norm", ops::NormKind::rms, D, config.norm_eps);
    block->add(norm, std::make_unique<nn::BiMamba>(params_, name + ".mixer", mixer));
    blocks_.push_back(std::move(block));
  }
  norm_f_ = nn::Norm::make(params_, "norm_f", ops::NormKind::rms, D, config.norm_eps);
  head_ = matrix("head.weight", {config.classes, D}, nn::normal(0.02));
  head_bias_ = vector("head.bias", {config.classes}, nn::constant(0.0f));
}

Tensor VisionMamba::logits(Context& c, const Tensor& images, bool recompute) const {
  const int64_t size = config_.image, D = config_.mixer.d_model;
  require(images.rank() == 4 && images.size(1) == config_.channels && images.size(2) == size &&
              images.size(3) == size,
          "images: expected (B, {}, {}, {}), got {}", config_.channels, size, size, images.shape);
  SegmentOptions options;
  options.recompute = recompute;
  options.replace_from = c.arena->low();
  const Tensor squares = ops::patches(c, images, config_.patch, config_.stride);
  const Tensor weight = patch_weight_->value.reshape({D, squares.size(2)});
  const Tensor x = ops::linear(c, squares, weight, patch_bias_->value, DType::f32);  // (B, M, D)
  Tensor r = ops::class_token(c, x, class_token_->value, positions_->value,
                              config_.class_at());  // (B, M+1, D)
  for (const auto& block : blocks_)
    r = segment(
        c, {r},
        [b = block.get(), r](Context& inner) {
          nn::BlockCall call;
          return Tensors{b->forward(inner, r, call)};
        },
        options)[0];
  const Tensor h = norm_f_(c, r.select(1, config_.class_at()), c.activation);  // (B, D)
  return ops::linear(c, h, head_->value, head_bias_->value, DType::f32);
}

ops::CrossEntropyResult VisionMamba::loss(Context& c, const Tensor& logits, const Tensor& labels,
                                          float scale) const {
  return ops::cross_entropy(c, logits, labels, scale);
}

}  // namespace krait::models
