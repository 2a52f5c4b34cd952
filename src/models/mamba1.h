// Mamba-1 (Gu and Dao 2023) and MambaByte, which is Mamba-1 over bytes (Wang et al. 2024).
#pragma once
#include "krait/base/json.h"
#include "krait/models/config.h"
#include "krait/nn/mamba1.h"

namespace krait::models {

// The published proportions: expand 2, dt rank ceil(D/16), N = 16, W = 4.
Config mamba_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple);

// The sizes of its mixers. Error where the model is of another architecture.
const nn::Mamba1Config& mamba1_of(const Config& config);
// The rank of Δ under `key`: a number, or "auto" or nothing for ceil(D/16).
int64_t read_dt_rank(const JsonView& json, const std::string& key, int64_t d_model);
// A copy with other sizes.
Config with_mamba1(Config config, const nn::Mamba1Config& mixer);

}  // namespace krait::models
