// What training and evaluation know of every model: parameters, outputs for what it reads, and a
// loss.
#pragma once
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/nn/param.h"
#include "krait/nn/state.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/packing.h"

namespace krait::models {

// How to run one pass. Everything may be left out.
struct Pass {
  const ops::Packing* packing = nullptr;
  const nn::State* state_in = nullptr;  // null: every sequence starts from zero
  nn::State* state_out = nullptr;  // may be the same object as state_in when nothing is recorded
  Recompute recompute = Recompute::cheap;  // of what layers compute, in backward
  float dropout = 0;
  float drop_path = 0;  // of whole layers of an image, see ops/drop_path: the last layer's rate
  float label_smoothing = 0;  // of classes, see ops::cross_entropy
  // Of models with experts. router (n_layer, 2) float32, optional: each layer's load-balancing loss and
  // dropped choices; 0 for layers without experts.
  float balance_gradient = 1;
  Tensor router;
};

// What a model reads in one pass and is judged by, in memory that its ops can read. Each model says
// which of the tensors it takes, and in what shape.
struct Feed {
  Tensor tokens;   // int32
  Tensor values;   // float32: images, series
  Tensor targets;  // int32, -1: not judged; float32 where numbers are predicted
};

// Of outputs (S, n) with targets: classes (S) int32, cross-entropy; numbers (S, n) float32, squared error.
ops::CrossEntropyResult loss_of(Context& c, const Tensor& outputs, const Tensor& targets,
                                ops::LossScale scale, float label_smoothing);

class Model {
 public:
  Model() = default;
  Model(const Model&) = delete;
  virtual ~Model() = default;

  nn::ParamSet& params() { return params_; }
  const nn::ParamSet& params() const { return params_; }
  const std::vector<nn::StatePart>& state_parts() const { return parts_; }
  // Zeros, on the device of the parameters, with room for `capacity` tokens in the parts that grow.
  // With `types.activations` bfloat16 it is for passes in bfloat16 alone.
  nn::State make_state(int64_t batch, int64_t capacity = 0, nn::StateTypes types = {}) const {
    return nn::State(parts_, batch, capacity, params_.device(), types);
  }
  virtual int64_t n_layer() const = 0;
  virtual bool routes() const { return false; }           // has experts
  virtual bool carries_by_host() const { return false; }  // see nn::Mixer
  virtual int64_t longest() const { return INT64_MAX; }   // tokens of what can be trained on
  // A sequence may go on for ever: its state does not grow and its positions do not run out.
  virtual bool endless() const { return !nn::grows(parts_); }

  // What the head says, float32: of each token, or of each image or sequence as a whole.
  virtual Tensor outputs(Context& c, const Feed& feed, const Pass& pass) const = 0;
  // scale · Σ of the losses of all targets, and the loss of each; by default loss_of(outputs).
  // Backward gives their memory back with that of the layers: read or copy them before.
  virtual ops::CrossEntropyResult objective(Context& c, const Feed& feed, const Pass& pass,
                                            ops::LossScale scale) const;
  // What B sequences of L tokens (or B images) would be fed as; for planning, none of it has memory.
  virtual Feed sketch(int64_t B, int64_t L) const = 0;

 protected:
  // A tensor for sketches.
  Tensor nowhere(const Shape& shape, DType dtype) const {
    return Tensor(reinterpret_cast<void*>(uintptr_t{1} << 46), dtype, shape, params_.device());
  }

  nn::ParamSet params_;
  std::vector<nn::StatePart> parts_;
};

}  // namespace krait::models
