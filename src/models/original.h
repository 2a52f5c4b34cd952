// What the original (state-spaces) layout can say beside an SSM: attention in some layers, and a gated MLP
// behind every mixer. Every architecture of that layout reads and builds its layers through these.
#pragma once
#include <functional>

#include "krait/models/architecture.h"
#include "krait/nn/attention.h"

namespace krait::models {

struct OriginalLayers {
  std::vector<int64_t> attention_at;  // layers, ascending
  nn::AttentionConfig attention;      // where there are any
  int64_t d_intermediate = 0;         // F before it is rounded up to 128; 0: no MLP

  bool is_attention(int64_t layer) const;
  // What the names of the first layer without attention begin with.
  std::string first_ssm() const;
  void check(const Config& config) const;
};

// The shell: sizes, vocabulary and its padding, norm, tied head; `vocab_multiple` is the default of its key.
Config read_original_shell(const JsonView& j);
OriginalLayers read_original_layers(const JsonView& j, const Config& config);
// The keys of both; `ssm_cfg` as given.
OrderedJson write_original(const Config& config, const OriginalLayers& layers,
                           const OrderedJson& ssm_cfg);

// Layer i: norm, attention or what `ssm` makes under the name it is given, norm, MLP.
using MakeSsm = std::function<std::unique_ptr<nn::Mixer>(nn::ParamSet&, const std::string& name)>;
std::unique_ptr<nn::Block> original_layer(nn::ParamSet& params, const Config& config, int64_t i,
                                          const OriginalLayers& layers, const MakeSsm& ssm);

// Corrects n_layer by counting, and the kind of norm.
void follow_original(Config& config, const ShapeOf& shape_of, std::vector<std::string>& notes);
// Corrects the width of the MLPs and which biases attention has.
void follow_layers(OriginalLayers& layers, const ShapeOf& shape_of,
                   std::vector<std::string>& notes);

}  // namespace krait::models
