// Transformer++ as its authors trained it beside Mamba (Gu and Dao 2023, appendix E.2; Dao and Gu 2024):
// rotary attention and gated MLPs under root-mean-square norms, no biases. Original layout only.
#include <array>

#include "krait/base/error.h"
#include "krait/models/original.h"
#include "krait/models/presets.h"

namespace krait::models {

namespace {

class TransformerppBody : public Body {
 public:
  explicit TransformerppBody(const OriginalLayers& o) : layers_(o) {}

  void check(const Config& c) const override { layers_.check(c); }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    return original_layer(
        params, c, i, layers_,
        [&](nn::ParamSet&, const std::string& name) -> std::unique_ptr<nn::Mixer> {
          fail("{}: this layer is not among the attention layers", name);
        });
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(layout == Layout::original, "Transformer++ has the original layout only");
    return write_original(c, layers_, OrderedJson::object());
  }

  const OriginalLayers& layers() const { return layers_; }

 private:
  const OriginalLayers layers_;
};

Config with_layers(Config c, const OriginalLayers& o) {
  c.architecture = kTransformerpp.name;
  c.layout = Layout::original;
  c.body = std::make_shared<TransformerppBody>(o);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  if (layout == Layout::huggingface) return false;
  const Json* at = j.find("attn_layer_idx");
  return at && at->is_array() && !at->empty() &&
         static_cast<int64_t>(at->size()) == j.integer("n_layer");
}

Config read(const JsonView& j, Layout) {
  const Config c = read_original_shell(j);
  return with_layers(c, read_original_layers(j, c));
}

void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  OriginalLayers layers = static_cast<const TransformerppBody&>(*c.body).layers();
  follow_layers(layers, shape_of, notes);
  follow_original(c, shape_of, notes);
  c = with_layers(c, layers);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, heads, head_dim, vocab_size, vocab_multiple;
};

// Table 12 of the Mamba paper and the published 2.7b, all with half of each head rotated as that one; and two
// over bytes to learn with.
constexpr std::array kPresets = {
    Preset{"transformerpp-125m", 768, 12, 12, 64, 50277, 16},
    Preset{"transformerpp-350m", 1024, 24, 16, 64, 50277, 16},
    Preset{"transformerpp-760m", 1536, 24, 16, 96, 50277, 16},
    Preset{"transformerpp-1.3b", 2048, 24, 32, 64, 50277, 16},
    Preset{"transformerpp-2.7b", 2560, 32, 32, 80, 50277, 16},
    Preset{"byte-transformer-tiny", 128, 3, 4, 32, 256, 1},
    Preset{"byte-transformer-small", 256, 5, 8, 32, 256, 1},
};

std::vector<std::string> presets() { return names_of(kPresets); }

Config preset_of(const std::string& name) {
  const Preset& p = named(kPresets, name);
  Config c;
  c.d_model = p.d_model;
  c.n_layer = p.n_layer;
  c.vocab_size = p.vocab_size;
  c.vocab_multiple = p.vocab_multiple;
  OriginalLayers o;
  for (int64_t i = 0; i < p.n_layer; ++i) o.attention_at.push_back(i);
  o.attention.heads = o.attention.key_heads = p.heads;
  o.attention.head_dim = p.head_dim;
  o.attention.rotation.R = p.head_dim / 2;
  o.d_intermediate = (8 * p.d_model / 3 + 127) / 128 * 128;
  return with_layers(c, o);
}

}  // namespace

const Architecture kTransformerpp = {"transformerpp", claims, read, presets, preset_of, follow};

}  // namespace krait::models
