// A language model: embedding, blocks over a float32 residual stream, a last norm, a head.
#pragma once
#include <memory>
#include <vector>

#include "krait/models/config.h"
#include "krait/nn/block.h"
#include "krait/ops/cross_entropy/cross_entropy.h"

namespace krait::models {

// How to run one pass. Everything may be left out.
struct Pass {
  const ops::Packing* packing = nullptr;
  const nn::State* state_in = nullptr;  // null: every sequence starts from zero
  nn::State* state_out = nullptr;  // may be the same object as state_in when nothing is recorded
  bool recompute = false;  // keep only the stream at layer borders, run layers again in backward
  float dropout = 0;
  // Of models with experts. router (n_layer, 2) float32, optional: each layer's load-balancing loss and
  // dropped choices; 0 for layers without experts.
  float balance_gradient = 1;
  Tensor router;
};

class LanguageModel {
 public:
  // Registers the parameters; takes no memory for them (ParamSet::allocate, or krait/io loads them).
  explicit LanguageModel(const Config& config);
  LanguageModel(const LanguageModel&) = delete;

  const Config& config() const { return config_; }
  nn::ParamSet& params() { return params_; }
  const nn::ParamSet& params() const { return params_; }
  bool routes() const;      // has experts
  int64_t longest() const;  // tokens of the longest sequence that can be trained on
  // A sequence may go on for ever: its state does not grow and its positions do not run out.
  bool endless() const { return !nn::grows(parts_) && positions_ == nullptr; }
  const std::vector<nn::StatePart>& state_parts() const { return parts_; }
  // Zeros, on the device of the parameters; with room for `capacity` tokens where it grows with them. For
  // passes in `activation` alone: others take and leave float32.
  nn::State make_state(int64_t batch, int64_t capacity = 0, DType activation = DType::f32) const {
    return nn::State(parts_, batch, capacity, params_.device(), activation);
  }

  // tokens (B, L) int32 -> what the head reads, (B, L, D) in the activation type. Tokens must be in
  // range: check_tokens says so before anything runs.
  // With a recording context and without recompute, the tensors of state_in may be variables, and those of
  // state_out come back as variables: gradients flow through states.
  Tensor hidden(Context& c, const Tensor& tokens, const Pass& pass) const;

  // (..., D) -> logits (..., V) float32.
  Tensor logits(Context& c, const Tensor& hidden) const;

  // scale · Σ cross-entropy against targets (B, L) int32 (-1: not counted); see linear_cross_entropy. Backward
  // gives its memory back with that of the layers: read or copy the loss before.
  ops::CrossEntropyResult loss(Context& c, const Tensor& hidden, const Tensor& targets,
                               float scale) const;

  // Throws Error naming the position of the first id that is negative or not below vocab_size.
  void check_tokens(const int32_t* tokens, int64_t n) const;

 private:
  bool any_block(bool (nn::Block::*has)() const) const;

  Config config_;
  nn::ParamSet params_;
  nn::Param* embedding_;
  nn::Param* positions_ = nullptr;
  nn::Param* head_;  // the embedding where tied
  std::vector<std::unique_ptr<nn::Block>> blocks_;
  std::vector<size_t> first_part_;  // of each block, into parts_
  std::vector<nn::StatePart> parts_;
  nn::Norm norm_f_;
};

}  // namespace krait::models
