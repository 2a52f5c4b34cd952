// A block is one layer of a model: it reads the residual stream and returns the next one. A mixer is what
// a block does to its normed stream. The same functions serve training, prefill from any state and
// one-token steps.
#pragma once
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "krait/nn/param.h"
#include "krait/nn/state.h"
#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/packing.h"

namespace krait::nn {

struct BlockCall {
  const ops::Packing* packing = nullptr;
  BlockState state;   // `out` tensors come back as variables where recorded
  float dropout = 0;  // on what a mixer adds to the stream
  // For experts: see ops::RouteOptions::balance_gradient, and `report` of ops::route.
  float balance_gradient = 1;
  Tensor router;
  Tensor embedded;        // (B, L, D) float32: the embeddings, for blocks that read them
  float drop_path = 0;    // of this block as a whole, see ops/drop_path; only BiMamba looks at it
  bool in_place = false;  // nobody reads the stream again: what a mixer adds may overwrite it
};

// The norm in front of a mixer, and the last one of a model.
struct Norm {
  ops::NormKind kind = ops::NormKind::rms;
  float eps = 1e-5f;
  const Param* weight = nullptr;  // null: ones
  const Param* bias = nullptr;
  const Param *running_mean = nullptr, *running_var = nullptr;  // batch

  // Registers `name`.weight (D), `name`.bias for a layer or batch norm, `name`.running_mean and .running_var for
  // the latter.
  static Norm make(ParamSet& params, const std::string& name, ops::NormKind kind, int64_t D,
                   float eps);
  // remake_y: see ops::norm.
  Tensor operator()(Context& c, const Tensor& x, DType out, bool remake_y = false) const;
};

// A norm and a mixer for which there is one op that takes one token through both: a faster way to
// the same numbers.
using StepLayer = std::variant<std::monostate, ops::Mamba1Layer, ops::Mamba2Layer>;

// Attention, an SSM, an MLP, experts.
class Mixer {
 public:
  virtual ~Mixer() = default;
  virtual std::vector<StatePart> state_parts() const { return {}; }
  virtual bool routes() const { return false; }  // it has experts: BlockCall::router is written
  // Whether training it from a state needs work of the host: such a step cannot be recorded on a
  // GPU.
  virtual bool carries_by_host() const { return false; }
  // Whether its only use of x is one ops::linear: then x may be a tensor that backward makes again
  // (Tape::watch_remade).
  virtual bool projects_first() const { return false; }
  // x (B, L, D), normed, in the activation type -> stream (B, L, D) float32 + what the mixer adds (see
  // project_and_add). The stream must not be used again (Tape::watch_sum). No stream: what it adds alone.
  virtual Tensor forward(Context& c, const Tensor& x, const Tensor& stream,
                         BlockCall& call) const = 0;
  // The mixer together with the norm before it, for an op of one token; empty where there is none.
  virtual StepLayer step_layer(const Norm&) const { return {}; }
};

class Block {
 public:
  virtual ~Block() = default;
  virtual std::vector<StatePart> state_parts() const = 0;
  virtual bool routes() const { return false; }
  virtual bool carries_by_host() const { return false; }
  virtual bool reads_embeddings() const { return false; }  // BlockCall::embedded is needed
  virtual StepLayer step_layer() const { return {}; }      // where it is one alone
  // r (B, L, D) float32 -> (B, L, D) float32; r must not be used again.
  virtual Tensor forward(Context& c, const Tensor& r, BlockCall& call) const = 0;
};

// r <- r + mixer(norm(r)), for each pair in turn; `parallel`: all norms read the stream as it came in.
class PreNorm : public Block {
 public:
  explicit PreNorm(bool parallel = false) : parallel_(parallel) {}
  void add(const Norm& norm, std::unique_ptr<Mixer> mixer);
  // Adds a mixer that reads the same normed stream as the last one; their results are summed.
  void add_beside(std::unique_ptr<Mixer> mixer);

  std::vector<StatePart> state_parts() const override;
  bool routes() const override;
  bool carries_by_host() const override;
  StepLayer step_layer() const override;
  Tensor forward(Context& c, const Tensor& r, BlockCall& call) const override;

 private:
  bool any_mixer(bool (Mixer::*has)() const) const;

  struct Part {
    std::optional<Norm> norm;  // none: it reads what the part before reads
    std::unique_ptr<Mixer> mixer;
  };
  bool parallel_;
  std::vector<Part> parts_;
};

// r <- norm(r + mixer(r)).
class PostNorm : public Block {
 public:
  PostNorm(const Norm& norm, std::unique_ptr<Mixer> mixer)
      : norm_(norm), mixer_(std::move(mixer)) {}

  std::vector<StatePart> state_parts() const override { return mixer_->state_parts(); }
  bool routes() const override { return mixer_->routes(); }
  bool carries_by_host() const override { return mixer_->carries_by_host(); }
  Tensor forward(Context& c, const Tensor& r, BlockCall& call) const override;

 private:
  Norm norm_;
  std::unique_ptr<Mixer> mixer_;
};

// Runs `mixer` with its share of the states that are left; the states it hands out are added to
// those of `call`.
Tensor forward_part(Context& c, const Mixer& mixer, const Tensor& x, const Tensor& stream,
                    BlockCall& call, BlockState& left);

// What a mixer adds to the stream: stream + dropout(factor (y Wᵀ + b)); without a stream y Wᵀ + b alone, in the
// activation type.
Tensor project_and_add(Context& c, const Tensor& y, const Param& w, const Param* bias,
                       const Tensor& stream, const BlockCall& call, float factor = 1);

}  // namespace krait::nn
