// Attention and MLPs as Hugging Face configs state them, for whatever has such layers among its own.
#pragma once
#include "krait/models/architecture.h"
#include "krait/nn/attention.h"
#include "krait/nn/mlp.h"

namespace krait::models {

struct TransformerKeys {
  nn::AttentionConfig attention;
  nn::MlpConfig mlp;
  double deviation = 0.02;  // of initial values
  int64_t longest = 2048;   // "max_position_embeddings": kept, not enforced

  void check() const;  // Error for sizes that cannot be
  // What the sizes and the shell say of both: width, initial values; and the name of attention's output.
  void settle(const Config& config);
};

// "num_attention_heads", "num_key_value_heads", "intermediate_size", "initializer_range" and
// "max_position_embeddings". `keys` has what stands for a missing one; a 0 there: as many key heads as heads, Error
// for the other sizes.
void read_transformer(const JsonView& json, TransformerKeys& keys);
void write_transformer(OrderedJson& json, const TransformerKeys& keys);
// "attention_bias", of all projections, and "mlp_bias", where a model may have them.
void read_biases(const JsonView& json, TransformerKeys& keys);
void write_biases(OrderedJson& json, const TransformerKeys& keys);

}  // namespace krait::models
