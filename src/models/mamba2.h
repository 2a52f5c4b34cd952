// Mamba-2 (Dao and Gu 2024).
#pragma once
#include "krait/base/json.h"
#include "krait/models/architecture.h"
#include "krait/nn/mamba2.h"

namespace krait::models {

// The published proportions: expand 2, heads of 64 channels, N = 128, one group, W = 4.
Config mamba2_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple);

// The sizes of its mixers. Error where the model is of another architecture.
const nn::Mamba2Config& mamba2_of(const Config& config);
// A copy with other sizes.
Config with_mamba2(Config config, const nn::Mamba2Config& mixer);

// Keys of a mixer as the original layout has them in "ssm_cfg", over the defaults for this width.
nn::Mamba2Config read_original_mamba2(const JsonView& ssm_cfg, int64_t d_model);
// Limits of Δ: a list of two numbers, which may be infinite.
void read_dt_limits(const JsonView& json, const char* key, nn::Mamba2Config& mixer);
OrderedJson dt_limits(const nn::Mamba2Config& mixer);
OrderedJson original_mamba2(const nn::Mamba2Config& mixer);
// Corrects what can be read off the shapes of a mixer's tensors, whose names begin with `name`. A product of
// state size and groups that either may be wrong about is left as it is.
void follow_mamba2(nn::Mamba2Config& mixer, const std::string& name, const ShapeOf& shape_of,
                   std::vector<std::string>& notes);

}  // namespace krait::models
