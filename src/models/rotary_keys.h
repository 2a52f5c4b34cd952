// Rotary positions as Hugging Face configs state them.
#pragma once
#include "krait/models/architecture.h"
#include "krait/ops/rotary/rotary.h"

namespace krait::models {

struct RotaryKeys {
  double base = 10000;
  double fraction = 1;  // of each head
  ops::RotaryScaling scaling;
};

// Reads "rope_parameters" of new files, or the flat keys of older ones: "rope_theta" or "rotary_emb_base",
// "partial_rotary_factor" or "rotary_pct"; what is missing stays as in `usual`. Of scaled angles ("rope_type" there or
// in "rope_scaling") "linear" and "llama3" are understood, others are errors.
RotaryKeys rotary_keys(const JsonView& j, const RotaryKeys& usual);

// Writes "rope_scaling" where angles are scaled.
void write_scaling(OrderedJson& j, const ops::RotaryScaling& scaling);
// All of it nested, as "rope_parameters" of new files.
OrderedJson rotary_parameters(const RotaryKeys& keys);

// The rotation of n = fraction · P channels of each head, rounded down. Where n is odd,
// transformers turns (n + 1) / 2 pairs all the same, by angles of base^(-2i/n).
ops::Rotation rotation_of(const RotaryKeys& keys, int64_t P);

}  // namespace krait::models
