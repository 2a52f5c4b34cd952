// A block is one layer of a model: it reads the residual stream and returns the next one. Norm, mixer and
// residual add are inside. The same function serves training, prefill from any state and one-token steps.
#pragma once
#include <vector>

#include "krait/nn/param.h"
#include "krait/nn/state.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/packing.h"

namespace krait::nn {

struct BlockCall {
  const ops::Packing* packing = nullptr;
  BlockState state;   // `out` tensors come back as variables where recorded
  float dropout = 0;  // on what the block adds to the stream
};

class Block {
 public:
  virtual ~Block() = default;
  virtual std::vector<StatePart> state_parts() const = 0;
  // r (B, L, D) float32 -> (B, L, D) float32; r must not be used again (Tape::watch_sum).
  virtual Tensor forward(Context& c, const Tensor& r, BlockCall& call) const = 0;
};

// The norm in front of a block, and the last one of a model.
struct Norm {
  ops::NormKind kind = ops::NormKind::rms;
  float eps = 1e-5f;
  const Param* weight = nullptr;
  const Param* bias = nullptr;

  // Registers `name`.weight (D), and `name`.bias for a layer norm.
  static Norm make(ParamSet& params, const std::string& name, ops::NormKind kind, int64_t D,
                   float eps);
  Tensor operator()(Context& c, const Tensor& x, DType out) const;
};

// What a block adds to the stream: stream + dropout(y Wᵀ + b).
Tensor project_and_add(Context& c, const Tensor& y, const Param& w, const Param* bias,
                       const Tensor& stream, float dropout);

}  // namespace krait::nn
