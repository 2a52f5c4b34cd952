// Blocks mixed freely. "layers" says what each layer is, and starts again where there are more layers than it names:
// kinds of mixers joined by "+", each behind a norm of its own and added to the stream.
//
//   {"model_type": "blocks", "hidden_size": 256, "num_hidden_layers": 8, "vocab_size": 256,
//    "layers": ["mamba2+mlp", "mamba2+experts", "attention+mlp"], "mamba2": {"d_state": 64}, ...}
//
// A section under the kind's name has its sizes. mamba, mamba2, mamba3 (and bimamba, both directions of time, for
// heads that judge): the keys of the original layout's "ssm_cfg"; s4: those of models/s4.cpp; attention: "num_heads",
// "num_heads_kv", "head_dim", "rotary_emb_dim", "rotary_emb_base", "window"; mlp (SwiGLU): "d_inner"; experts
// (SwiGLU): "n_experts", "k", "d_inner", "capacity_factor", "balance".
#include <algorithm>
#include <cmath>

#include "krait/base/error.h"
#include "krait/models/architecture.h"
#include "krait/models/mamba2.h"
#include "krait/models/mixers.h"
#include "krait/nn/attention.h"
#include "krait/nn/mlp.h"
#include "krait/nn/moe.h"

namespace krait::models {

namespace {

constexpr const char* kKinds[] = {"mamba", "mamba2",    "mamba3", "bimamba",
                                  "s4",    "attention", "mlp",    "experts"};

using Layer = std::vector<std::string>;  // kinds

struct Sizes {
  std::vector<Layer> layers;
  nn::Mamba1Config mamba, bimamba;
  bool shared = false;  // of bimamba
  nn::Mamba2Config mamba2;
  nn::Mamba3Config mamba3;
  nn::S4Config s4;
  nn::AttentionConfig attention;
  nn::MlpConfig mlp;
  nn::MoeConfig experts;
  OrderedJson given;  // "layers" and the sections, as they were read

  bool use(const std::string& kind) const {
    return std::any_of(layers.begin(), layers.end(), [&](const Layer& l) {
      return std::find(l.begin(), l.end(), kind) != l.end();
    });
  }
  bool hears_the_future() const { return use("bimamba") || (use("s4") && s4.bidirectional); }
};

class BlocksBody : public Body {
 public:
  explicit BlocksBody(const Sizes& s) : sizes_(s) {}

  void check(const Config& c) const override {
    const Sizes& s = sizes_;
    if (s.use("mamba")) models::check(s.mamba);
    if (s.use("bimamba")) models::check(s.bimamba);
    if (s.use("mamba2")) nn::check(s.mamba2);
    if (s.use("mamba3")) models::check(s.mamba3);
    if (s.use("s4")) models::check(s.s4, c.d_model);
    if (s.use("attention")) nn::check(s.attention);
    if (s.use("mlp")) check_size("mlp.d_inner", s.mlp.d_inner, 1, 1 << 22);
    if (s.use("experts")) {
      check_size("experts.d_inner", s.experts.d_inner, 1, 1 << 22);
      check_size("experts.n_experts", s.experts.n_experts, 1, 1 << 12);
      check_size("experts.k", s.experts.k, 1, s.experts.n_experts);
    }
  }

  int64_t longest(const Config& c) const override {
    return sizes_.use("s4") && sizes_.s4.dplr ? sizes_.s4.length : Body::longest(c);
  }

  std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& c,
                                   int64_t i) const override {
    require(c.task.kind != Task::language || !sizes_.hears_the_future(),
            "config: layers: a model that predicts the next token must not hear it; give the "
            "sequences a head (problem_type, or train --task)");
    auto block = std::make_unique<nn::PreNorm>();
    for (const std::string& kind : sizes_.layers[static_cast<size_t>(i) % sizes_.layers.size()]) {
      const std::string name = fmt::format("backbone.layers.{}.{}", i, kind);
      const nn::Norm norm = make_norm(params, name + "_norm", c);
      block->add(norm, mixer(params, name, kind));
    }
    return block;
  }

  OrderedJson json(const Config& c, Layout layout) const override {
    require(
        layout == Layout::huggingface,
        "the original layout is for models of the state-spaces repository of Mamba; mixed blocks "
        "are written in the Hugging Face layout");
    OrderedJson j;
    write_shell(j, c);
    j.update(sizes_.given);
    j["norm"] = c.norm == ops::NormKind::rms     ? "rms"
                : c.norm == ops::NormKind::layer ? "layer"
                                                 : "batch";
    j["norm_epsilon"] = shortest(c.norm_eps);
    j["tie_word_embeddings"] = c.tie_embeddings;
    write_eos(j, c);
    return j;
  }

 private:
  std::unique_ptr<nn::Mixer> mixer(nn::ParamSet& params, const std::string& name,
                                   const std::string& kind) const {
    const Sizes& s = sizes_;
    if (kind == "mamba") return std::make_unique<nn::Mamba1>(params, name, s.mamba);
    if (kind == "bimamba") return std::make_unique<nn::BiMamba>(params, name, s.bimamba, s.shared);
    if (kind == "mamba2") return std::make_unique<nn::Mamba2>(params, name, s.mamba2);
    if (kind == "mamba3") return std::make_unique<nn::Mamba3>(params, name, s.mamba3);
    if (kind == "s4") return std::make_unique<nn::S4>(params, name, s.s4);
    if (kind == "attention") return std::make_unique<nn::Attention>(params, name, s.attention);
    if (kind == "mlp") return std::make_unique<nn::Mlp>(params, name, s.mlp);
    return std::make_unique<nn::Moe>(params, name, s.experts);
  }

  const Sizes sizes_;
};

// "mamba2+mlp" as its kinds. One of a kind in a layer, and one that has a state.
Layer kinds_of(const JsonView& j, const std::string& text) {
  Layer kinds;
  int states = 0;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('+', begin), text.size());
    const std::string kind = text.substr(begin, end - begin);
    if (std::find(std::begin(kKinds), std::end(kKinds), kind) == std::end(kKinds) ||
        std::find(kinds.begin(), kinds.end(), kind) != kinds.end())
      j.wrong("layers", fmt::format("kinds joined by +, each at most once in a layer, of: {}",
                                    fmt::join(kKinds, ", ")));
    states += kind != "mlp" && kind != "experts" && kind != "bimamba";
    kinds.push_back(kind);
    begin = end + 1;
  }
  if (states > 1) j.wrong("layers", "layers with one state each: two such mixers need two layers");
  return kinds;
}

Config read(const JsonView& j, Layout) {
  Config c;
  Sizes s;
  c.architecture = kBlocks.name;
  c.vocab_size = j.integer("vocab_size");
  c.d_model = j.integer("hidden_size");
  c.n_layer = j.integer("num_hidden_layers");
  c.norm_eps = static_cast<float>(j.number("norm_epsilon", 1e-5));
  c.tie_embeddings = j.boolean("tie_word_embeddings", true);
  c.eos_ids = eos_ids(j);
  const std::string norm = j.text("norm", "rms");
  if (norm != "rms" && norm != "layer" && norm != "batch")
    j.wrong("norm", "\"rms\", \"layer\" or \"batch\"");
  c.norm = norm == "rms"     ? ops::NormKind::rms
           : norm == "layer" ? ops::NormKind::layer
                             : ops::NormKind::batch;
  const Json& layers = j.at("layers");
  if (!layers.is_array() || layers.empty()) j.wrong("layers", "a list of what layers are");
  for (const Json& layer : layers) {
    if (!layer.is_string()) j.wrong("layers", "a list of strings");
    s.layers.push_back(kinds_of(j, layer.get<std::string>()));
  }
  s.given["layers"] = OrderedJson::parse(layers.dump());
  for (const char* kind : kKinds)
    if (j.has(kind)) s.given[kind] = OrderedJson::parse(j.at(kind).dump());
  const Json none = Json::object();
  const auto section = [&](const char* kind) {
    return j.has(kind) ? j.object(kind) : JsonView(none, j.where());
  };
  const int64_t D = c.d_model;
  const double rescale = std::sqrt(static_cast<double>(std::max<int64_t>(c.n_layer, 1)));
  s.mamba = read_original_mamba1(section("mamba"), D);
  s.bimamba = read_original_mamba1(section("bimamba"), D);
  s.shared = section("bimamba").boolean("shared", false);
  s.mamba2 = read_original_mamba2(section("mamba2"), D);
  s.mamba3 = read_original_mamba3(section("mamba3"), D);
  if (s.use("s4")) s.s4 = read_s4(section("s4"));
  s.s4.d_model = D;
  s.mamba.out_rescale = s.bimamba.out_rescale = s.mamba2.out_rescale = s.mamba3.out_rescale =
      rescale;
  const JsonView a = section("attention");
  s.attention.d_model = D;
  s.attention.heads = a.integer("num_heads", std::max<int64_t>(1, D / 64));
  s.attention.key_heads = a.integer("num_heads_kv", s.attention.heads);
  s.attention.head_dim = a.integer("head_dim", s.attention.heads > 0 ? D / s.attention.heads : 0);
  s.attention.rotation.R = a.integer("rotary_emb_dim", 0);
  s.attention.rotation.base = a.number("rotary_emb_base", s.attention.rotation.base);
  s.attention.window = a.integer("window", 0);
  s.attention.out_rescale = rescale;
  s.mlp.d_model = s.experts.d_model = D;
  s.mlp.d_inner = section("mlp").integer("d_inner", 4 * D);
  s.mlp.out_rescale = rescale;
  const JsonView e = section("experts");
  s.experts.d_inner = e.integer("d_inner", 4 * D);
  s.experts.n_experts = e.integer("n_experts", 8);
  s.experts.k = e.integer("k", 1);
  s.experts.capacity_factor = e.number("capacity_factor", 0);
  s.experts.balance = static_cast<float>(e.number("balance", 0));
  s.experts.init = nn::normal(0.02);
  c.body = std::make_shared<BlocksBody>(s);
  return c;
}

bool claims(const JsonView& j, Layout layout) {
  return layout == Layout::huggingface && j.text("model_type") == "blocks";
}

// A small one over bytes: attention in every eighth layer, experts in every second.
constexpr const char* kByteSmall = R"({
  "model_type": "blocks", "hidden_size": 256, "num_hidden_layers": 8, "vocab_size": 256,
  "layers": ["mamba2+mlp", "mamba2+experts", "mamba2+mlp", "mamba2+experts",
             "attention+mlp", "mamba2+experts", "mamba2+mlp", "mamba2+experts"],
  "mamba2": {"d_state": 64}, "attention": {"num_heads": 4}, "mlp": {"d_inner": 512},
  "experts": {"n_experts": 4, "d_inner": 512, "capacity_factor": 2.0, "balance": 0.01}})";

}  // namespace

const Architecture kBlocks = {
    "blocks", claims, read, [] { return std::vector<std::string>{"blocks-byte-small"}; },
    [](const std::string&) {
      const Json json = parse_json(kByteSmall, "blocks-byte-small");
      return read(JsonView(json, "blocks-byte-small"), Layout::huggingface);
    }};

}  // namespace krait::models
