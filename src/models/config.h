// What a model is, independent of the file it came from. krait/io/config reads and writes the published
// config.json files.
#pragma once
#include <string>
#include <vector>

#include "krait/nn/mamba1.h"

namespace krait::models {

struct Config {
  std::string architecture = "mamba";  // as `model_type` names it
  int64_t d_model = 0;                 // D
  int64_t n_layer = 0;
  int64_t vocab_size = 0;      // ids below it may occur
  int64_t vocab_multiple = 1;  // the embedding has this many rows, rounded up: V
  bool tie_embeddings = true;
  ops::NormKind norm = ops::NormKind::rms;
  float norm_eps = 1e-5f;
  nn::Mamba1Config mamba;  // d_model, d_inner, dt_rank filled in
  std::vector<int32_t> eos_ids;

  int64_t padded_vocab() const {
    return (vocab_size + vocab_multiple - 1) / vocab_multiple * vocab_multiple;
  }
};

// "mamba-130m", "mambabyte-353m", "byte-small", ...; Error lists the names where there is no such one.
Config preset(const std::string& name);
const std::vector<std::string>& preset_names();

// A Mamba-1 config with the published proportions: expand 2, dt rank ceil(D/16), N = 16, W = 4.
Config mamba_config(int64_t d_model, int64_t n_layer, int64_t vocab_size, int64_t vocab_multiple);

// Throws Error for sizes that no model can have (zero, negative, overflowing).
void check(const Config& config);

}  // namespace krait::models
