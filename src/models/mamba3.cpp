// Mamba-3 (arXiv 2603.15569), SISO and MIMO, with what the original layout allows beside it: gated MLPs and
// attention layers. It is published in that layout only.
#include <array>
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/mixers.h"
#include "krait/models/original.h"
#include "krait/models/presets.h"

namespace krait::models {

namespace {

Config with_mamba3(Config config, const nn::Mamba3Config& mixer, const OriginalLayers& layers);

class Mamba3Body : public Body {
 public:
  Mamba3Body(const nn::Mamba3Config& m, const OriginalLayers& o) : mixer(m), layers(o) {}

  void check(const Config& c) const override {
    layers.check(c);
    models::check(mixer);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    nn::Mamba3Config m = mixer;
    m.d_model = c.d_model;
    m.out_rescale = std::sqrt(static_cast<double>(c.n_layer));
    return original_layer(params, c, i, layers, [&m](nn::ParamSet& to, const std::string& name) {
      return std::make_unique<nn::Mamba3>(to, name, m);
    });
  }

  OrderedJson json(const Config& c, Layout layout) const override;

  const nn::Mamba3Config mixer;  // d_model and out_rescale follow from the shell
  const OriginalLayers layers;
};

// As the published code rounds: int(N · fraction) / 2.
int64_t angles_of(double fraction, int64_t N) {
  const double turned = fraction * static_cast<double>(N);
  return turned >= 0 && turned <= static_cast<double>(N) ? static_cast<int64_t>(turned) / 2 : -1;
}

// A fraction that gives this many.
double fraction_of(int64_t angles, int64_t N) {
  for (const double usual : {0.5, 1.0})
    if (angles_of(usual, N) == angles) return usual;
  return (2.0 * static_cast<double>(angles) + 0.5) / static_cast<double>(N);
}

Config read(const JsonView& j, Layout) {
  const Config c = read_original_shell(j);
  return with_mamba3(c, read_original_mamba3(j.object("ssm_cfg"), c.d_model),
                     read_original_layers(j, c));
}

OrderedJson Mamba3Body::json(const Config& c, Layout layout) const {
  require(layout == Layout::original,
          "Mamba-3 has no Hugging Face layout: write the original layout");
  const nn::Mamba3Config& m = mixer;
  const nn::Mamba3Config usual;
  OrderedJson s;
  s["layer"] = "Mamba3";
  s["d_state"] = m.d_state;
  if (m.d_inner % c.d_model == 0) {
    s["expand"] = m.d_inner / c.d_model;
  } else {
    s["expand"] = static_cast<double>(m.d_inner) / static_cast<double>(c.d_model);
  }
  s["headdim"] = m.headdim;
  s["ngroups"] = m.ngroups;
  s["rope_fraction"] = fraction_of(m.angles, m.d_state);
  if (m.mimo) {
    s["is_mimo"] = true;
    s["mimo_rank"] = m.rank;
  }
  if (m.outproj_norm) s["is_outproj_norm"] = true;
  if (m.A_floor != usual.A_floor) s["A_floor"] = m.A_floor;
  if (m.decay != usual.decay) s["A_activation"] = "softplus";
  if (m.dt_min != usual.dt_min) s["dt_min"] = m.dt_min;
  if (m.dt_max != usual.dt_max) s["dt_max"] = m.dt_max;
  if (m.dt_floor != usual.dt_floor) s["dt_init_floor"] = m.dt_floor;
  return write_original(c, layers, s);
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::original && j.has("ssm_cfg") &&
         j.object("ssm_cfg").text("layer", "Mamba1") == "Mamba3";
}

// What can be read off the weights' shapes: no published config.json says the width of the MLP as stored.
void follow(Config& c, const ShapeOf& shape_of, std::vector<std::string>& notes) {
  const auto* body = dynamic_cast<const Mamba3Body*>(c.body.get());
  nn::Mamba3Config m = body->mixer;
  OriginalLayers layers = body->layers;
  const std::string mixer = layers.first_ssm() + "mixer.";
  if (const Shape* s = shape_of(mixer + "out_proj.weight"); s && s->rank == 2)
    follow_weights("d_inner", m.d_inner, (*s)[1], notes);
  if (const Shape* s = shape_of(mixer + "B_bias"); s && s->rank == 3 && (*s)[0] > 0) {
    follow_weights("headdim", m.headdim, m.d_inner / (*s)[0], notes);
    follow_weights("mimo_rank", m.rank, (*s)[1], notes);
    follow_weights("d_state", m.d_state, (*s)[2], notes);
  }
  follow_weights("is_mimo", m.mimo, shape_of(mixer + "mimo_x") != nullptr, notes);
  follow_weights("is_outproj_norm", m.outproj_norm, shape_of(mixer + "norm.weight") != nullptr,
                 notes);
  if (const Shape* s = shape_of(mixer + "in_proj.weight"); s && s->rank == 2 && m.headdim > 0) {
    const int64_t others = 2 * m.d_inner + 2 * m.rank * m.ngroups * m.d_state + 3 * m.heads();
    follow_weights("rotation angles", m.angles, (*s)[0] - others, notes);
  }
  follow_layers(layers, shape_of, notes);
  follow_original(c, shape_of, notes);
  c = with_mamba3(c, m, layers);
}

struct Preset {
  const char* name;
  int64_t d_model, n_layer, d_intermediate, rank;  // rank 0: SISO
  int64_t vocab = 128256;
};

// The paper's models: MLP widths as printed, depths so that the named counts come out with the embedding
// of the Llama-3.1 tokenizer; and one over bytes to learn with.
constexpr std::array kPresets = {
    Preset{"mamba3-180m", 768, 12, 1500, 0},          Preset{"mamba3-440m", 1024, 24, 2048, 0},
    Preset{"mamba3-880m", 1536, 24, 3072, 0},         Preset{"mamba3-1.5b", 2048, 24, 4096, 0},
    Preset{"mamba3-mimo-180m", 768, 12, 1264, 4},     Preset{"mamba3-mimo-440m", 1024, 24, 1792, 4},
    Preset{"mamba3-mimo-880m", 1536, 24, 2800, 4},    Preset{"mamba3-mimo-1.5b", 2048, 24, 3824, 4},
    Preset{"mamba3-byte-small", 256, 6, 512, 0, 256},
};

std::vector<std::string> presets() { return names_of(kPresets); }

Config preset_of(const std::string& name) {
  const Preset& p = named(kPresets, name);
  Config c;
  c.layout = Layout::original;
  c.d_model = p.d_model;
  c.n_layer = p.n_layer;
  c.vocab_size = p.vocab;
  c.vocab_multiple = 8;
  nn::Mamba3Config m;
  m.d_inner = 2 * p.d_model;
  m.mimo = p.rank > 0;
  m.rank = std::max<int64_t>(1, p.rank);
  OriginalLayers layers;
  layers.d_intermediate = p.d_intermediate;
  return with_mamba3(c, m, layers);
}

Config with_mamba3(Config config, const nn::Mamba3Config& mixer, const OriginalLayers& layers) {
  config.architecture = kMamba3.name;
  config.body = std::make_shared<Mamba3Body>(mixer, layers);
  return config;
}

}  // namespace

const Architecture kMamba3 = {"mamba3", claims, read, presets, preset_of, follow};

nn::Mamba3Config read_original_mamba3(const JsonView& s, int64_t d_model) {
  nn::Mamba3Config m;
  m.d_model = d_model;
  m.d_state = s.integer("d_state", m.d_state);
  m.headdim = s.integer("headdim", m.headdim);
  m.ngroups = s.integer("ngroups", m.ngroups);
  const double E = s.number("expand", 2) * static_cast<double>(d_model);
  m.d_inner = E >= 1 && E < 1e12 ? static_cast<int64_t>(E) : 0;  // 0 is refused by check()
  m.mimo = s.boolean("is_mimo", false);
  m.rank = m.mimo ? s.integer("mimo_rank", 4) : 1;
  m.angles = angles_of(s.number("rope_fraction", 0.5), m.d_state);
  if (m.angles < 0) s.wrong("rope_fraction", "a number from 0 to 1");
  m.A_floor = s.number("A_floor", m.A_floor);
  m.outproj_norm = s.boolean("is_outproj_norm", false);
  m.dt_min = s.number("dt_min", m.dt_min);
  m.dt_max = s.number("dt_max", m.dt_max);
  m.dt_floor = s.number("dt_init_floor", m.dt_floor);
  // The published code has no key for it: its first release had softplus, and no file says which it is.
  const std::string decay = s.text("A_activation", "heavy_tailed");
  if (decay != "heavy_tailed" && decay != "softplus")
    s.wrong("A_activation", "\"heavy_tailed\" or \"softplus\"");
  m.decay = decay == "softplus" ? ops::DecayKind::softplus : ops::DecayKind::heavy_tailed;
  return m;
}

void check(const nn::Mamba3Config& m) {
  check_size("d_inner", m.d_inner, 1, 1 << 22);
  check_size("headdim", m.headdim, 1, 1024);
  require(m.d_inner % m.headdim == 0,
          "config: headdim: expected a divisor of the inner width {}, got {}", m.d_inner,
          m.headdim);
  check_size("ngroups", m.ngroups, 1, m.heads());
  require(m.heads() % m.ngroups == 0, "config: ngroups: expected a divisor of the {} heads, got {}",
          m.heads(), m.ngroups);
  check_size("d_state", m.d_state, 2, 1024);
  require(!m.mimo || m.d_state % 2 == 0,
          "config: d_state: expected an even number, as MIMO turns its halves together, got {}",
          m.d_state);
  check_size("mimo_rank", m.rank, 1, 64);
  check_size("rotation angles", m.angles, 1, m.d_state / 2);
}

}  // namespace krait::models
