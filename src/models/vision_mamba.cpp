#include "krait/models/vision_mamba.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "krait/autograd/segment.h"
#include "krait/models/config.h"
#include "krait/models/presets.h"
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
  const Preset& p = named(kPresets, name);
  VisionConfig c;
  c.mixer.d_model = p.d_model;
  c.mixer.d_inner = 2 * p.d_model;
  c.mixer.dt_rank = (p.d_model + 15) / 16;
  return c;
}

std::vector<std::string> vision_preset_names() { return names_of(kPresets); }

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
  require(c.labels.empty() || static_cast<int64_t>(c.labels.size()) == c.classes,
          "config: expected names for {} classes, got {}", c.classes, c.labels.size());
}

namespace {

double cubic(double x) {
  constexpr double a = -0.75;
  x = std::abs(x);
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

// Place i of m among n: the four neighbours and their weights.
struct Taps {
  int64_t at[4];
  double weight[4];

  Taps(int64_t i, int64_t n, int64_t m) {
    const double x =
        (static_cast<double>(i) + 0.5) * static_cast<double>(n) / static_cast<double>(m) - 0.5;
    const auto left = static_cast<int64_t>(std::floor(x));
    for (int64_t k = 0; k < 4; ++k) {
      at[k] = std::clamp<int64_t>(left - 1 + k, 0, n - 1);
      weight[k] = cubic(x - static_cast<double>(left - 1 + k));
    }
  }
};

int64_t grid_of(const Tensor& positions) {
  const auto n =
      static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(positions.size(1) - 1))));
  require(n >= 1 && n * n + 1 == positions.size(1), "positions: expected (1, n² + 1, D), got {}",
          positions.shape);
  return n;
}

// The row of a patch, counted without the class token in their middle.
int64_t row_of(int64_t patch, int64_t patches) { return patch + (patch >= patches / 2 ? 1 : 0); }

}  // namespace

void resize_positions(const Tensor& from, const Tensor& to) {
  const int64_t n = grid_of(from), m = grid_of(to), D = from.size(2);
  require(to.size(2) == D, "positions of {} numbers cannot become some of {}", D, to.size(2));
  const auto row = [D](const Tensor& t, int64_t r) { return t.as<float>() + r * D; };
  std::copy_n(row(from, n * n / 2), D, row(to, m * m / 2));
  for (int64_t i = 0; i < m * m; ++i) {
    const Taps down(i / m, n, m), across(i % m, n, m);
    for (int64_t d = 0; d < D; ++d) {
      double sum = 0;
      for (int a = 0; a < 4; ++a)
        for (int b = 0; b < 4; ++b)
          sum += down.weight[a] * across.weight[b] *
                 static_cast<double>(row(from, row_of(down.at[a] * n + across.at[b], n * n))[d]);
      row(to, row_of(i, m * m))[d] = static_cast<float>(sum);
    }
  }
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
    const nn::Norm norm = nn::Norm::make(params_, name + ".norm", config.norm, D, config.norm_eps);
    block->add(norm, std::make_unique<nn::BiMamba>(params_, name + ".mixer", mixer, config.shared));
    blocks_.push_back(std::move(block));
  }
  norm_f_ = nn::Norm::make(params_, "norm_f", config.norm, D, config.norm_eps);
  head_ = matrix("head.weight", {config.classes, D}, nn::normal(0.02));
  head_bias_ = vector("head.bias", {config.classes}, nn::constant(0.0f));
}

Tensor VisionMamba::outputs(Context& c, const Feed& feed, const Pass& pass) const {
  const Tensor& images = feed.values;
  const int64_t size = config_.image, D = config_.mixer.d_model;
  require(images.rank() == 4 && images.size(1) == config_.channels && images.size(2) == size &&
              images.size(3) == size,
          "images: expected (B, {}, {}, {}), got {}", config_.channels, size, size, images.shape);
  SegmentOptions options;
  options.recompute = pass.recompute;
  options.replace_from = c.arena->low();
  const Tensor squares = ops::patches(c, images, config_.patch, config_.stride);
  const Tensor weight = patch_weight_->value.reshape({D, squares.size(2)});
  const Tensor x = ops::linear(c, squares, weight, patch_bias_->value, DType::f32);  // (B, M, D)
  Tensor r = ops::class_token(c, x, class_token_->value, positions_->value,
                              config_.class_at());  // (B, M+1, D)
  // What block i adds is dropped at a rate that rises linearly from 0 to that of the last one.
  const auto deepest = static_cast<float>(std::max<int64_t>(config_.n_layer - 1, 1));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const float rate = pass.drop_path * static_cast<float>(i) / deepest;
    r = segment(
        c, {r},
        [b = blocks_[i].get(), r, rate, in_place = !c.tape](Context& inner) {
          nn::BlockCall call;
          call.drop_path = rate;
          call.in_place = in_place;
          return Tensors{b->forward(inner, r, call)};
        },
        options)[0];
  }
  const Tensor h = norm_f_(c, r.select(1, config_.class_at()), c.activation);  // (B, D)
  return ops::linear(c, h, head_->value, head_bias_->value, DType::f32);
}

Feed VisionMamba::sketch(int64_t B, int64_t) const {
  const int64_t size = config_.image;
  return {{}, nowhere({B, config_.channels, size, size}, DType::f32), nowhere({B}, DType::i32)};
}

}  // namespace krait::models
