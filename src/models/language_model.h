// A language model: embedding, blocks over a float32 residual stream, a last norm, a head. With another head
// (Config::task) the same blocks judge a sequence as a whole, and with other inputs (Config::inputs) a series of
// vectors.
#pragma once
#include <memory>
#include <vector>

#include "krait/models/config.h"
#include "krait/models/model.h"
#include "krait/nn/block.h"

namespace krait::models {

class LanguageModel : public Model {
 public:
  // Registers the parameters; takes no memory for them (ParamSet::allocate, or krait/io loads them).
  explicit LanguageModel(const Config& config);

  const Config& config() const { return config_; }
  bool judges_sequences() const { return score_ != nullptr; }
  int64_t n_layer() const override { return config_.n_layer; }
  bool routes() const override;
  bool carries_by_host() const override;
  int64_t longest() const override;
  bool endless() const override { return Model::endless() && positions_ == nullptr; }

  // A language model's Feed: tokens and targets (B, L).
  // Where sequences are judged as a whole: one target for each of S sequences, a class (S) or
  // numbers (S, outputs). Where series are read: values (B, L, F) in place of tokens. With
  // Task::token a place behind each sequence, whatever is in it, for the learned token.
  Tensor outputs(Context& c, const Feed& feed, const Pass& pass) const override;
  ops::CrossEntropyResult objective(Context& c, const Feed& feed, const Pass& pass,
                                    ops::LossScale scale) const override;
  Feed sketch(int64_t B, int64_t L) const override;

  // tokens (B, L) int32 -> what the head reads, (B, L, D) in the activation type. Tokens must be in
  // range: check_tokens says so before anything runs.
  // With a recording context the tensors of state_in may be variables, and those of state_out come back as
  // variables: gradients flow through states.
  Tensor hidden(Context& c, const Tensor& tokens, const Pass& pass) const {
    return hidden(c, Feed{tokens, {}, {}}, pass);
  }
  Tensor hidden(Context& c, const Feed& feed, const Pass& pass) const;

  // (..., D) -> logits (..., V) float32. Error where the head judges sequences as a whole.
  Tensor logits(Context& c, const Tensor& hidden) const;
  // The same into `to`, without a tape.
  void logits_into(Context& c, const Tensor& hidden, const Tensor& to) const;

  // scale · Σ cross-entropy against targets (B, L) int32 (-1: not counted); see
  // linear_cross_entropy. Backward gives back the memory of the result with that of the layers:
  // read or copy the loss before.
  ops::CrossEntropyResult loss(Context& c, const Tensor& hidden, const Tensor& targets,
                               ops::LossScale scale) const;

  // Throws Error naming the position of the first id that is negative or not below vocab_size.
  void check_tokens(const int32_t* tokens, int64_t n) const;

 private:
  bool any_block(bool (nn::Block::*has)() const) const;
  // Takes a decoded token through all blocks by one kernel. Where there is no such kernel it does
  // nothing and returns an empty tensor.
  Tensor step_at_once(Context& c, const Tensor& stream, const Pass& pass) const;

  const nn::Param& head() const;  // of a language model

  Config config_;
  nn::Param* embedding_ = nullptr;  // or, of series:
  nn::Param *input_ = nullptr, *input_bias_ = nullptr;
  nn::Param *positions_ = nullptr, *token_ = nullptr;
  nn::Param* head_ = nullptr;   // the embedding where tied; or
  nn::Param* score_ = nullptr;  // of what judges sequences
  std::vector<std::unique_ptr<nn::Block>> blocks_;
  std::vector<size_t> first_part_;  // of each block, into parts_
  nn::Norm norm_f_;
};

}  // namespace krait::models
