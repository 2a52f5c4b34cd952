#include <array>
#include <cmath>

#include "krait/models/config.h"

namespace krait::models {

namespace {

struct Preset {
  const char* name;
  int64_t d_model, n_layer, vocab_size, vocab_multiple;
};

// Published sizes (Mamba: table 12 of the paper, twice the layers; MambaByte: section 4), and small ones
// over bytes to learn with.
constexpr std::array kPresets = {
    Preset{"mamba-130m", 768, 24, 50277, 8},    Preset{"mamba-370m", 1024, 48, 50277, 8},
    Preset{"mamba-790m", 1536, 48, 50277, 8},   Preset{"mamba-1.4b", 2048, 48, 50277, 8},
    Preset{"mamba-2.8b", 2560, 64, 50277, 8},   Preset{"mambabyte-353m", 1024, 53, 256, 1},
    Preset{"mambabyte-972m", 1792, 48, 256, 1}, Preset{"byte-tiny", 128, 4, 256, 1},
    Preset{"byte-small", 256, 6, 256, 1},       Preset{"byte-medium", 512, 12, 256, 1},
};

}  // namespace

Config mamba_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple) {
  Config c;
  c.d_model = d_model;
  c.n_layer = n_layer;
  c.vocab_size = vocab_size;
  c.vocab_multiple = vocab_multiple;
  c.mamba.d_model = d_model;
  c.mamba.d_inner = 2 * d_model;
  c.mamba.dt_rank = (d_model + 15) / 16;
  c.mamba.out_rescale = std::sqrt(static_cast<double>(n_layer));
  return c;
}

Config preset(const std::string& name) {
  for (const Preset& p : kPresets)
    if (name == p.name) return mamba_config(p.d_model, p.n_layer, p.vocab_size, p.vocab_multiple);
  std::string known;
  for (const std::string& n : preset_names()) known += (known.empty() ? "" : ", ") + n;
  fail("no preset is named \"{}\"; known: {}", name, known);
}

const std::vector<std::string>& preset_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> v;
    for (const Preset& p : kPresets) v.push_back(p.name);
    return v;
  }();
  return names;
}

void check(const Config& c) {
  const auto positive = [](const char* what, int64_t v, int64_t most = int64_t{1} << 31) {
    require(v > 0 && v <= most, "config: {}: expected a number from 1 to {}, got {}", what, most,
            v);
  };
  positive("vocab_size", c.vocab_size);
  positive("vocabulary multiple", c.vocab_multiple);
  positive("d_model", c.d_model, 1 << 20);
  positive("n_layer", c.n_layer, 1 << 14);
  positive("d_inner", c.mamba.d_inner, 1 << 22);
  positive("d_state", c.mamba.d_state, 256);
  positive("dt_rank", c.mamba.dt_rank, 1 << 20);
  require(c.mamba.d_conv >= 2 && c.mamba.d_conv <= 8,
          "config: d_conv: expected a number from 2 to 8, got {}", c.mamba.d_conv);
}

}  // namespace krait::models
