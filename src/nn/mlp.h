// The MLP mixer: up, an activation or a gate, down.
//
//   plain      down(f(up(x)))
//   gated      down(f(gate(x)) · up(x)); gate and up are two matrices, or the halves of one
#pragma once
#include "krait/nn/adapter.h"
#include "krait/nn/block.h"
#include "krait/ops/gate/gate.h"

namespace krait::nn {

// How files store what the gate needs. One matrix has the rows of up and then gate, or of gate and then up.
enum class MlpLayout { plain, separate, gate_last, gate_first };

struct MlpConfig {
  int64_t d_model = 0;  // D
  int64_t d_inner = 0;  // F
  ops::Gate gate_kind = ops::Gate::silu;
  MlpLayout layout = MlpLayout::separate;
  bool bias = false;
  // constants that gate(x) and the output are multiplied by (muP)
  float gate_factor = 1, out_factor = 1;
  // Under the mixer's name; `gate` for separate matrices only.
  std::string up = "up_proj", gate = "gate_proj", down = "down_proj";
  // Initial values: normal with this deviation, or 0: uniform within 1/sqrt(fan in), down divided by
  // out_rescale.
  double deviation = 0;
  double out_rescale = 1;
};

// A copy shares the parameters.
class Mlp : public Mixer {
 public:
  Mlp(ParamSet& params, const std::string& name, const MlpConfig& config);
  void set_up_adapter(const Adapter& adapter) { adapter_ = adapter; }  // corrects the matrix `up`

  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  struct Linear {
    const Param *weight = nullptr, *bias = nullptr;
  };
  MlpConfig config_;
  Linear up_, gate_, down_;
  Adapter adapter_;
};

}  // namespace krait::nn
