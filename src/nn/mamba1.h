// The Mamba-1 mixer (Gu and Dao 2023, section 3.4): in_proj, causal convolution, input-dependent Δ, B, C,
// selective scan with skip and gate, out_proj.
#pragma once
#include "krait/nn/block.h"
#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::nn {

// Root-mean-square norms of dt, B and C before they are used.
enum class InnerNorm {
  none,     // Mamba-1
  plain,    // without weights: Falcon-Mamba
  learned,  // dt_layernorm, b_layernorm, c_layernorm: Jamba
};

struct Mamba1Config {
  int64_t d_model = 0;   // D
  int64_t d_inner = 0;   // E
  int64_t d_state = 16;  // N
  int64_t d_conv = 4;    // W
  int64_t dt_rank = 0;   // R
  bool conv_bias = true;
  bool proj_bias = false;  // biases of in_proj and out_proj
  InnerNorm inner_norm = InnerNorm::none;
  float inner_eps = 1e-6f;
  // Initial values only.
  double dt_min = 1e-3, dt_max = 0.1, dt_floor = 1e-4, dt_scale = 1.0;
  bool dt_constant = false;  // dt_proj.weight all R^-1/2 * scale instead of uniform in +-that
  double out_rescale = 1.0;  // out_proj is drawn this many times smaller: sqrt(n_layer)
};

// What one direction of time does, from the convolution to the gated output of the scan.
class SelectiveBranch {
 public:
  // Registers `name`.conv1d.* and the others; backwards in time with the names of Vision Mamba, conv1d_b.*,
  // A_b_log, D_b.
  SelectiveBranch(ParamSet& params, const std::string& name, const Mamba1Config& config,
                  bool backward = false);

  std::vector<StatePart> state_parts() const;  // conv (E, W), ssm (E, N)
  // xz (B, L, 2E) -> y (B, L, E). remake_y: see ops::ScanInputs.
  Tensor forward(Context& c, const Tensor& xz, BlockCall& call, bool remake_y = false) const;
  // The inputs of its scan.
  struct Inputs {
    ops::ScanInputs scan;
    Tensor conv_state;  // where the call hands states out
  };
  Inputs inputs(Context& c, const Tensor& xz, const BlockCall& call) const;
  // Fills in its part of the layer for ops::mamba1_step.
  void describe(ops::Mamba1Layer& layer) const;

 private:
  Mamba1Config config_;
  bool backward_;
  Param *conv_, *conv_bias_ = nullptr, *x_proj_, *dt_proj_, *dt_bias_, *A_log_, *D_;
  Norm dt_norm_, B_norm_, C_norm_;
};

class Mamba1 : public Mixer {
 public:
  // Registers `name`.in_proj.weight and the others.
  Mamba1(ParamSet& params, const std::string& name, const Mamba1Config& config);

  std::vector<StatePart> state_parts() const override { return branch_.state_parts(); }
  bool projects_first() const override { return true; }
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;
  StepLayer step_layer(const Norm& norm) const override;

 private:
  bool steps_;  // ops::mamba1_step is this mixer
  Param *in_proj_, *in_bias_;
  SelectiveBranch branch_;
  Param *out_proj_, *out_bias_;
};

// Both directions of time, from one in_proj to one out_proj (Vision Mamba, Zhu et al. 2024, algorithm 1). With
// parameters of their own ("bimamba v2", as published): y = out_proj((forward + backward) / 2). With shared ones
// ("v1") both scan what one convolution and its projections made, backwards with an A of its own:
// y = out_proj(forward + backward). Without states: it sees the whole sequence.
class BiMamba : public Mixer {
 public:
  BiMamba(ParamSet& params, const std::string& name, const Mamba1Config& config, bool shared);

  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  Param* in_proj_;
  SelectiveBranch forward_;
  std::optional<SelectiveBranch> backward_;  // where it has its own
  Param* A_b_log_ = nullptr;                 // where the rest is shared
  Param* out_proj_;
};

}  // namespace krait::nn
