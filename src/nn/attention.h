// The attention mixer: projections to queries, keys and values, a causal convolution on the three where a
// model has one, rotary positions, causal attention over what came before, an output projection.
#pragma once
#include <array>

#include "krait/nn/adapter.h"
#include "krait/nn/block.h"
#include "krait/ops/attention/attention.h"
#include "krait/ops/rotary/rotary.h"

namespace krait::nn {

// How files store the projections to q, k, v. The rows of one matrix: all of q, then k, then v; or head by
// head, q k v each (GPT-NeoX; as many key heads as heads).
enum class QkvLayout { separate, rows, heads };

struct AttentionConfig {
  int64_t d_model = 0;                  // D
  int64_t d_in = 0;                     // width of the input; 0: D
  int64_t heads = 0;                    // H
  int64_t key_heads = 0;                // Hkv
  int64_t head_dim = 0;                 // P
  float scale = 0;                      // of scores; 0: P^-1/2
  float in_factor = 1, out_factor = 1;  // constants that input and output are multiplied by (muP)
  int64_t window = 0;  // tokens that a token sees, itself included; 0: all before it
  ops::Rotation rotation;
  int64_t d_conv = 0;  // W; 0: no convolution
  int64_t d_mlp = 0;   // M of a gated MLP beside the heads (rows layout only); 0: none
  QkvLayout layout = QkvLayout::separate;
  bool qkv_bias = false, out_bias = false, conv_bias = true;
  // Under the mixer's name: one matrix `qkv`, or q_proj, k_proj, v_proj; and conv1d.
  std::string qkv = "in_proj", out = "out_proj";
  // Initial values: normal with this deviation, or 0: uniform within 1/sqrt(fan in), out divided by
  // out_rescale.
  double deviation = 0;
  double out_rescale = 1;

  int64_t width() const { return d_in > 0 ? d_in : d_model; }
  int64_t channels() const { return (heads + 2 * key_heads) * head_dim; }  // q, k and v
};

// Throws Error for counts and sizes of heads that cannot be, in the words of Hugging Face configs.
void check(const AttentionConfig& config);

// States: conv (channels, W) where there is one: inputs of the convolution; k and v (Hkv·P) per token, keys
// rotated, or with a window a ring of (window, Hkv·P); length (1). A copy shares the parameters.
class Attention : public Mixer {
 public:
  Attention(ParamSet& params, const std::string& name, const AttentionConfig& config);
  // Corrects the projection to q, k or v (part 0, 1, 2; matrices of their own only).
  void set_adapter(size_t part, const Adapter& adapter) { adapters_[part] = adapter; }

  std::vector<StatePart> state_parts() const override;
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  struct Qkv {
    Tensor q, k, v;  // (B, L, heads, P)
    Tensor qk;       // the heads of both side by side, where they lie so
    Tensor mlp;      // (B, L, M), where there is one: up · silu(gate)
  };
  Qkv project(Context& c, const Tensor& x, BlockCall& call, Tensor& conv_end) const;

  AttentionConfig config_;
  std::vector<const Param*> in_, in_bias_;  // one of all three, or one each
  std::array<Adapter, 3> adapters_;
  const Param *conv_ = nullptr, *conv_bias_ = nullptr, *out_ = nullptr, *out_bias_ = nullptr;
};

}  // namespace krait::nn
