// Sizes of mixers as the original layout's "ssm_cfg" states them, and S4's under Krait's own keys; for whatever has
// such mixers among its layers. Error for sizes that no mixer can have.
#pragma once
#include "krait/base/json.h"
#include "krait/nn/mamba1.h"
#include "krait/nn/mamba3.h"
#include "krait/nn/s4.h"

namespace krait::models {

nn::Mamba1Config read_original_mamba1(const JsonView& ssm_cfg, int64_t d_model);
nn::Mamba3Config read_original_mamba3(const JsonView& ssm_cfg, int64_t d_model);
nn::S4Config read_s4(const JsonView& json);
void check(const nn::Mamba1Config& mixer);
void check(const nn::Mamba3Config& mixer);
void check(const nn::S4Config& mixer, int64_t d_model);

}  // namespace krait::models
