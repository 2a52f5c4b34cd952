// Mamba-2 with attention in a few layers, or an MLP behind every mixer (Dao and Gu 2024, section 9.2.3), as
// mamba2attn-2.7b is published. Original layout only.
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/mamba2.h"
#include "krait/models/original.h"

namespace krait::models {

namespace {

class HybridBody : public Body {
 public:
  HybridBody(const nn::Mamba2Config& m, const OriginalLayers& o) : mixer_(m), layers_(o) {}

  void check(const Config& c) const override {
    nn::check(mixer_);
    layers_.check(c);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    nn::Mamba2Config m = mixer_;
    m.out_rescale = std::sqrt(static_cast<double>(c.n_layer));
    return original_layer(params, c, i, layers_, [&](nn::ParamSet& set, const std::string& name) {
      return std::make_unique<nn::Mamba2>(set, name, m);
    });
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(layout == Layout::original,
            "Mamba-2 with attention or MLP layers has the original layout only");
    return write_original(c, layers_, original_mamba2(mixer_));
  }

  const nn::Mamba2Config& mixer() const { return mixer_; }
  const OriginalLayers& layers() const { return layers_; }

 private:
  const nn::Mamba2Config mixer_;
  const OriginalLayers layers_;
};

Config with_layers(Config c, const nn::Mamba2Config& m, const OriginalLayers& o) {
  c.architecture = kMamba2Hybrid.name;
  c.layout = Layout::original;
  c.body = std::make_shared<HybridBody>(m, o);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  if (layout != Layout::original || !j.has("ssm_cfg") ||
      j.object("ssm_cfg").text("layer", "Mamba1") != "Mamba2")
    return false;
  const Json* attention = j.find("attn_layer_idx");
  return (attention && !attention->empty()) || j.integer("d_intermediate", 0) != 0;
}

Config read(const JsonView& j, Layout) {
  const Config c = read_original_shell(j);
  return with_layers(c, read_original_mamba2(j.object("ssm_cfg"), c.d_model),
                     read_original_layers(j, c));
}

void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  const auto& body = static_cast<const HybridBody&>(*c.body);
  nn::Mamba2Config m = body.mixer();
  OriginalLayers layers = body.layers();
  m.d_model = c.d_model;
  follow_mamba2(m, layers.first_ssm() + "mixer.", shape_of, notes);
  follow_original(c, shape_of, notes);
  follow_layers(layers, shape_of, notes);
  c = with_layers(c, m, layers);
}

std::vector<std::string> presets() { return {"mamba2attn-2.7b", "byte-hybrid-tiny"}; }

// The published one; and one over bytes to learn with.
Config preset_of(const std::string& name) {
  const bool published = name == presets()[0];
  Config c;
  c.d_model = published ? 2560 : 128;
  c.n_layer = published ? 64 : 4;
  c.vocab_size = published ? 50277 : 256;
  c.vocab_multiple = published ? 16 : 1;
  nn::Mamba2Config m;
  m.d_model = c.d_model;
  m.d_ssm = 2 * c.d_model;
  if (!published) m.headdim = m.d_state = 32;
  OriginalLayers o;
  o.attention_at =
      published ? std::vector<int64_t>{9, 18, 27, 36, 45, 56} : std::vector<int64_t>{2};
  nn::AttentionConfig& a = o.attention;
  a.heads = a.key_heads = published ? 30 : 4;
  a.head_dim = published ? 128 : 32;
  a.rotation.R = a.head_dim / 2;
  a.d_conv = 4;
  return with_layers(c, m, o);
}

}  // namespace

const Architecture kMamba2Hybrid = {"mamba2attn", claims, read, presets, preset_of, follow};

}  // namespace krait::models
