// S4 and S4D layers with layer or batch norms before or after them (Gu, Goel, Ré 2021; Gu, Gupta, Goel, Ré 2022):
// language models, and, where both directions of time are heard, heads that judge a sequence.
// The papers' code has no config.json; the keys here are Krait's, the layers' names those of that code.
#include "krait/nn/s4.h"

#include <array>

#include "krait/base/error.h"
#include "krait/models/architecture.h"
#include "krait/models/mixers.h"
#include "krait/models/presets.h"

namespace krait::models {

namespace {

class S4Body : public Body {
 public:
  S4Body(const nn::S4Config& s, bool norms_first) : mixer_(s), prenorm_(norms_first) {}

  void check(const Config& c) const override { models::check(mixer_, c.d_model); }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    require(
        !mixer_.bidirectional || c.task.kind != Task::language,
        "config: bidirectional: a model that predicts the next token must not hear it; give the "
        "sequences a head (problem_type, or train --task)");
    const std::string name = fmt::format("backbone.layers.{}", i);
    nn::S4Config s = mixer_;
    s.d_model = c.d_model;
    const nn::Norm norm = make_norm(params, name + ".norm", c);
    auto layer = std::make_unique<nn::S4>(params, name + ".mixer", s);
    if (!prenorm_) return std::make_unique<nn::PostNorm>(norm, std::move(layer));
    auto block = std::make_unique<nn::PreNorm>();
    block->add(norm, std::move(layer));
    return block;
  }

  int64_t longest(const Config& c) const override {
    return mixer_.dplr ? mixer_.length : Body::longest(c);
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(layout == Layout::huggingface,
            "the original layout is for models of the state-spaces repository of Mamba; S4 is "
            "written in the Hugging Face layout");
    OrderedJson j;
    write_shell(j, c);
    j["state_size"] = mixer_.d_state;
    j["n_ssm"] = mixer_.n_ssm;
    j["mode"] = mixer_.dplr ? "dplr" : "s4d";
    j["init"] = mixer_.init;
    j["disc"] = mixer_.bilinear ? "bilinear" : "zoh";
    if (mixer_.dplr) j["l_kernel"] = mixer_.length;
    j["dt_min"] = mixer_.dt_min;
    j["dt_max"] = mixer_.dt_max;
    j["ssm_lr"] = shortest(mixer_.lr);
    j["bidirectional"] = mixer_.bidirectional;
    j["norm"] = c.norm == ops::NormKind::batch ? "batch" : "layer";
    j["prenorm"] = prenorm_;
    j["layer_norm_epsilon"] = shortest(c.norm_eps);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  const nn::S4Config mixer_;  // d_model follows from the shell
  const bool prenorm_;
};

// As in the published code, there is no last norm where norms come after the layers.
Config with_s4(Config c, const nn::S4Config& mixer, ops::NormKind norm, bool prenorm) {
  c.architecture = "s4";
  c.norm = norm;
  if (!prenorm) c.norm_f.clear();
  c.body = std::make_shared<S4Body>(mixer, prenorm);
  return c;
}

std::string one_of(const JsonView& j, const std::string& key, const std::string& usual,
                   const std::vector<std::string>& known) {
  std::string value = j.text(key, usual);
  for (const std::string& k : known)
    if (value == k) return value;
  j.wrong(key, fmt::format("one of {}", fmt::join(known, ", ")));
}

Config read(const JsonView& j, Layout) {
  Config c;
  c.vocab_size = j.integer("vocab_size");
  c.d_model = j.integer("hidden_size");
  c.n_layer = j.integer("num_hidden_layers");
  c.norm_eps = static_cast<float>(j.number("layer_norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", true);
  c.eos_ids = eos_ids(j);
  const nn::S4Config s = read_s4(j);
  const bool batch = one_of(j, "norm", "layer", {"layer", "batch"}) == "batch";
  return with_s4(c, s, batch ? ops::NormKind::batch : ops::NormKind::layer,
                 j.boolean("prenorm", true));
}

struct Preset {
  const char* name;
  bool dplr;
  const char* init;
};

// Small ones over bytes: 256 wide, 6 layers, d_state 64.
constexpr std::array kPresets = {Preset{"s4-byte-small", true, "legs"},
                                 Preset{"s4d-byte-small", false, "lin"}};

}  // namespace

const Architecture kS4 = {"s4",
                          [](const JsonView& j, Layout layout) {
                            return layout == Layout::huggingface && j.text("model_type") == "s4";
                          },
                          read, [] { return names_of(kPresets); },
                          [](const std::string& name) {
                            Config c;
                            c.d_model = 256;
                            c.n_layer = 6;
                            c.vocab_size = 256;
                            nn::S4Config s;
                            const Preset& p = named(kPresets, name);
                            s.dplr = p.dplr;
                            s.init = p.init;
                            if (s.dplr) s.length = 1024;
                            return with_s4(c, s, ops::NormKind::layer, true);
                          }};

nn::S4Config read_s4(const JsonView& j) {
  nn::S4Config s;
  s.d_state = j.integer("state_size", s.d_state);
  s.n_ssm = j.integer("n_ssm", s.n_ssm);
  s.dplr = one_of(j, "mode", "s4d", {"s4d", "dplr"}) == "dplr";
  s.init = one_of(j, "init", "legs",
                  s.dplr ? std::vector<std::string>{"legs", "fout"}
                         : std::vector<std::string>{"legs", "lin", "inv", "inv2", "quad", "real"});
  s.bilinear = one_of(j, "disc", "zoh", {"zoh", "bilinear"}) == "bilinear";
  s.length = s.dplr ? j.integer("l_kernel") : 0;
  s.dt_min = j.number("dt_min", s.dt_min);
  s.dt_max = j.number("dt_max", s.dt_max);
  s.lr = static_cast<float>(j.number("ssm_lr", static_cast<double>(s.lr)));
  s.bidirectional = j.boolean("bidirectional", false);
  return s;
}

void check(const nn::S4Config& m, int64_t d_model) {
  check_size("state_size", m.d_state, 2, 256);
  require(m.d_state % 2 == 0, "config: state_size: expected an even number, got {}", m.d_state);
  check_size("n_ssm", m.n_ssm, 1, d_model);
  require(d_model % m.n_ssm == 0, "config: n_ssm: expected a divisor of {}, got {}", d_model,
          m.n_ssm);
  check_size("l_kernel", m.length, m.dplr ? 1 : 0, int64_t{1} << 24);
  require(m.dt_min > 0 && m.dt_max >= m.dt_min,
          "config: dt_min, dt_max: expected two numbers above 0 in order, got {}, {}", m.dt_min,
          m.dt_max);
}

}  // namespace krait::models
