// The Mamba-3 mixer (arXiv 2603.15569): in_proj gives z, x, B, C, step sizes, decays, trapezoid weights and
// angles; norms and biases of B and C; the rotated trapezoidal recurrence of rank R; out_proj. No convolution.
#pragma once
#include "krait/nn/block.h"
#include "krait/ops/mamba3_steps/mamba3_steps.h"

namespace krait::nn {

struct Mamba3Config {
  int64_t d_model = 0;    // D
  int64_t d_inner = 0;    // E = H P
  int64_t d_state = 128;  // N
  int64_t headdim = 64;   // P
  int64_t ngroups = 1;    // G
  bool mimo = false;
  int64_t rank = 1;     // R; 1 unless mimo
  int64_t angles = 32;  // pairs of dimensions that are turned
  double A_floor = 1e-4;
  ops::DecayKind decay = ops::DecayKind::heavy_tailed;
  bool outproj_norm = false;
  float norm_eps = 1e-5f;
  // Initial values only.
  double dt_min = 1e-3, dt_max = 0.1, dt_floor = 1e-4;
  double out_rescale = 1.0;  // out_proj is drawn this many times smaller: sqrt(n_layer)

  int64_t heads() const { return d_inner / headdim; }  // H
};

class Mamba3 : public Mixer {
 public:
  // Registers `name`.in_proj.weight and the others.
  Mamba3(ParamSet& params, const std::string& name, const Mamba3Config& config);

  // angle (H, angles), ssm (H, P, N), k (R, H, N), v (H, P)
  std::vector<StatePart> state_parts() const override;
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  Mamba3Config config_;
  Param *in_proj_, *dt_bias_, *B_bias_, *C_bias_, *D_, *out_proj_;
  Param *mimo_x_ = nullptr, *mimo_z_ = nullptr, *mimo_o_ = nullptr, *norm_ = nullptr;
  Norm B_norm_, C_norm_;
};

}  // namespace krait::nn
