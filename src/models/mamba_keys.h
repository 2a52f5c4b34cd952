// Sizes of Mamba-2 mixers as the configs of Bamba and Falcon-H1 state them: "mamba_n_heads", "mamba_d_state", ...
#pragma once
#include "krait/models/mamba2.h"

namespace krait::models {

// `d_model` and the defaults of transformers stand for what is missing.
nn::Mamba2Config mamba_keys(const JsonView& j, int64_t d_model);
void write_mamba_keys(OrderedJson& j, const nn::Mamba2Config& mixer);

}  // namespace krait::models
