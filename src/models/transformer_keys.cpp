#include "krait/models/transformer_keys.h"

namespace krait::models {

void TransformerKeys::check() const {
  nn::check(attention);
  check_size("intermediate_size", mlp.d_inner, 1, 1 << 22);
}

void TransformerKeys::settle(const Config& c) {
  attention.d_model = mlp.d_model = c.d_model;
  attention.deviation = mlp.deviation = deviation;
  attention.out = "o_proj";
}

void read_transformer(const JsonView& j, TransformerKeys& keys) {
  const auto size = [&](const char* key, int64_t usual) {
    return usual == 0 ? j.integer(key) : j.integer(key, usual);
  };
  nn::AttentionConfig& a = keys.attention;
  a.heads = size("num_attention_heads", a.heads);
  a.key_heads = j.integer("num_key_value_heads", a.key_heads == 0 ? a.heads : a.key_heads);
  keys.mlp.d_inner = size("intermediate_size", keys.mlp.d_inner);
  keys.deviation = j.number("initializer_range", keys.deviation);
  keys.longest = j.integer("max_position_embeddings", keys.longest);
}

void write_transformer(OrderedJson& j, const TransformerKeys& keys) {
  j["num_attention_heads"] = keys.attention.heads;
  j["num_key_value_heads"] = keys.attention.key_heads;
  j["intermediate_size"] = keys.mlp.d_inner;
  j["initializer_range"] = keys.deviation;
  j["max_position_embeddings"] = keys.longest;
}

void read_biases(const JsonView& j, TransformerKeys& keys) {
  keys.attention.qkv_bias = keys.attention.out_bias = j.boolean("attention_bias", false);
  keys.mlp.bias = j.boolean("mlp_bias", false);
}

void write_biases(OrderedJson& j, const TransformerKeys& keys) {
  j["attention_bias"] = keys.attention.qkv_bias;
  j["mlp_bias"] = keys.mlp.bias;
}

}  // namespace krait::models
