#include "krait/models/language_model.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "krait/autograd/segment.h"
#include "krait/models/architecture.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/pool/pool.h"
#include "krait/ops/positions/positions.h"
#include "krait/ops/scale/scale.h"

namespace krait::models {

LanguageModel::LanguageModel(const Config& config) : config_(config) {
  check(config);
  const int64_t V = config.padded_vocab(), D = config.d_model;
  if (config.inputs > 0) {
    input_ = &params_.add("input_projection.weight", {D, config.inputs}, nn::fan_in(config.inputs));
    input_->decay = true;
    input_bias_ = &params_.add("input_projection.bias", {D}, nn::constant(0.0f));
    input_bias_->keep_float32 = true;
  } else {
    embedding_ = &params_.add(config.embedding.name, {V, D}, nn::normal(0.02));
    embedding_->original = config.embedding.original;
    embedding_->decay = true;
  }
  if (config.positions > 0) {
    positions_ = &params_.add(config.position_table.name, {config.positions, D}, nn::normal(0.02));
    positions_->original = config.position_table.original;
    positions_->decay = true;
    parts_.push_back({"state.position", {1}});
  }
  blocks_ = config.body->layers(params_, config);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    first_part_.push_back(parts_.size());
    for (nn::StatePart part : blocks_[i]->state_parts()) {
      part.name = fmt::format("state.{}.{}", i, part.name);
      parts_.push_back(part);
    }
  }
  if (!config.norm_f.empty())
    norm_f_ = nn::Norm::make(params_, config.norm_f, config.norm, D, config.norm_eps);
  if (config.task.kind != Task::language) {
    if (config.task.pooling == Task::token) {
      token_ = &params_.add("class_token", {D}, nn::normal(0.02));
      token_->keep_float32 = true;
    }
    score_ = &params_.add("score.weight", {config.task.outputs, D}, nn::normal(0.02));
    score_->decay = true;
    return;
  }
  head_ = embedding_;
  if (!config.tie_embeddings) {
    const double a = 1.0 / std::sqrt(static_cast<double>(D));
    head_ = &params_.add(config.head.name, {V, D}, nn::uniform(-a, a));
    head_->original = config.head.original;
    head_->decay = true;
  }
}

Tensor LanguageModel::hidden(Context& c, const Feed& feed, const Pass& pass) const {
  const auto embed = [&] {
    Tensor r = input_ ? ops::linear(c, feed.values, input_->value, input_bias_->value, DType::f32)
                      : ops::embedding(c, feed.tokens, embedding_->value);  // (B, L, D)
    r = ops::scale(c, r, config_.embedding_factor);
    return token_ ? ops::put_last(c, r, token_->value, pass.packing) : r;
  };
  // Layers that read the embeddings get a variable of their own: the stream must not be used again
  // (Tape::watch_sum).
  Tensor embedded;
  if (any_block(&nn::Block::reads_embeddings)) embedded = embed();
  SegmentOptions options;
  options.recompute = pass.recompute;
  options.replace_from = c.arena->low();
  Tensor r = embed();
  if (positions_)
    r = ops::add_positions(c, r, positions_->value, pass.packing,
                           pass.state_in ? pass.state_in->tensor(0) : Tensor(),
                           pass.state_out ? pass.state_out->tensor(0) : Tensor());
  const Tensor stepped = step_at_once(c, r, pass);
  if (stepped) r = stepped;
  for (size_t i = 0; !stepped && i < blocks_.size(); ++i) {
    nn::BlockCall call{pass.packing, {}, pass.dropout, pass.balance_gradient, {}, {}};
    call.in_place = !c.tape;
    if (pass.router) call.router = pass.router.select(0, static_cast<int64_t>(i));
    const size_t end = i + 1 < blocks_.size() ? first_part_[i + 1] : parts_.size();
    for (size_t p = first_part_[i]; p < end; ++p) {
      if (pass.state_in) call.state.in.push_back(pass.state_in->tensor(p));
      if (pass.state_out) call.state.out.push_back(pass.state_out->tensor(p));
    }
    Tensors inputs = {r};
    if (blocks_[i]->reads_embeddings()) {
      call.embedded = embedded;
      inputs.push_back(embedded);
    }
    inputs.insert(inputs.end(), call.state.in.begin(), call.state.in.end());
    const Tensors results = segment(
        c, inputs,
        [block = blocks_[i].get(), r, call](Context& b) {
          nn::BlockCall own = call;
          Tensors all = {block->forward(b, r, own)};
          if (b.tape)  // gradients come back through the states as well
            all.insert(all.end(), own.state.out.begin(), own.state.out.end());
          return all;
        },
        options);
    r = results[0];
    for (size_t k = 1; k < results.size(); ++k)
      pass.state_out->tensor(first_part_[i] + k - 1) = results[k];
  }
  const Tensor h = config_.norm_f.empty() ? r : norm_f_(c, r, c.activation);
  return ops::scale(c, h, config_.head_factor);
}

Tensor LanguageModel::step_at_once(Context& c, const Tensor& stream, const Pass& pass) const {
  if (c.device.type == Device::cpu || c.tape || c.training || pass.packing || stream.size(1) != 1 ||
      !pass.state_in || !pass.state_out)
    return {};
  const auto through = [&]<class Layer>(std::type_identity<Layer>, const auto& stack) -> Tensor {
    std::vector<Layer> layers;
    std::vector<ops::StepStates> states;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const nn::StepLayer of = blocks_[i]->step_layer();
      const Layer* const layer = std::get_if<Layer>(&of);
      if (!layer) return {};
      const auto [conv, ssm] = std::pair(first_part_[i], first_part_[i] + 1);
      if (pass.state_in->tensor(conv).data != pass.state_out->tensor(conv).data) return {};
      layers.push_back(*layer);
      states.push_back({pass.state_in->tensor(conv), pass.state_in->tensor(ssm)});
    }
    return stack(c, layers, states, stream);
  };
  const Tensor next = through(std::type_identity<ops::Mamba1Layer>(), ops::mamba1_stack);
  return next ? next : through(std::type_identity<ops::Mamba2Layer>(), ops::mamba2_stack);
}

bool LanguageModel::any_block(bool (nn::Block::*has)() const) const {
  return std::any_of(blocks_.begin(), blocks_.end(), [=](const auto& b) { return (*b.*has)(); });
}

bool LanguageModel::routes() const { return any_block(&nn::Block::routes); }

bool LanguageModel::carries_by_host() const { return any_block(&nn::Block::carries_by_host); }

int64_t LanguageModel::longest() const {
  const int64_t n = config_.body->longest(config_);
  return (positions_ ? std::min(n, config_.positions) : n) - (token_ ? 1 : 0);
}

Tensor LanguageModel::outputs(Context& c, const Feed& feed, const Pass& pass) const {
  const Tensor h = hidden(c, feed, pass);
  if (!score_) return logits(c, h);
  const Tensor pooled = config_.task.pooling == Task::mean ? ops::pool_mean(c, h, pass.packing)
                                                           : ops::pool_last(c, h, pass.packing);
  return ops::linear(c, pooled, score_->value, {}, DType::f32);  // (S, outputs)
}

ops::CrossEntropyResult LanguageModel::objective(Context& c, const Feed& feed, const Pass& pass,
                                                 ops::LossScale scale) const {
  if (score_) return Model::objective(c, feed, pass, scale);
  return loss(c, hidden(c, feed, pass), feed.targets, scale);
}

Feed LanguageModel::sketch(int64_t B, int64_t L) const {
  const Tensor ids = nowhere({B, L}, DType::i32);
  if (!score_) return {ids, {}, ids};
  if (token_) ++L;
  Feed feed;
  if (input_) {
    feed.values = nowhere({B, L, config_.inputs}, DType::f32);
  } else {
    feed.tokens = nowhere({B, L}, DType::i32);
  }
  feed.targets = config_.task.kind == Task::classification
                     ? nowhere({B}, DType::i32)
                     : nowhere({B, config_.task.outputs}, DType::f32);
  return feed;
}

const nn::Param& LanguageModel::head() const {
  require(head_ != nullptr, "this model judges sequences as a whole; it does not predict tokens");
  return *head_;
}

Tensor LanguageModel::logits(Context& c, const Tensor& hidden) const {
  return ops::linear(c, hidden, head().value, {}, DType::f32);
}

void LanguageModel::logits_into(Context& c, const Tensor& hidden, const Tensor& to) const {
  ops::linear_into(c, hidden, head().value, to);
}

ops::CrossEntropyResult LanguageModel::loss(Context& c, const Tensor& hidden, const Tensor& targets,
                                            ops::LossScale scale) const {
  return ops::linear_cross_entropy(c, hidden, head().value, targets, scale);
}

void LanguageModel::check_tokens(const int32_t* tokens, int64_t n) const {
  for (int64_t i = 0; i < n; ++i)
    require(tokens[i] >= 0 && tokens[i] < config_.vocab_size,
            "token {}: id {} is outside the vocabulary of {}", i, tokens[i], config_.vocab_size);
}

}  // namespace krait::models
