// The Mamba-2 mixer (Dao and Gu 2024, section 7): one projection gives gate, input, B, C and Δ at once; a
// causal convolution over x, B, C; ssd; a gated norm; out_proj.
#pragma once
#include <array>
#include <limits>

#include "krait/nn/block.h"

namespace krait::nn {

struct Mamba2Config {
  int64_t d_model = 0;    // D
  int64_t d_ssm = 0;      // E = heads · headdim
  int64_t d_mlp = 0;      // channels of a gated MLP beside the SSM; 0: none
  int64_t headdim = 64;   // P
  int64_t d_state = 128;  // N
  int64_t groups = 1;     // G
  int64_t d_conv = 4;     // W
  bool conv_bias = true;
  bool in_bias = false, out_bias = false;  // of in_proj and out_proj
  bool D_per_channel = false;              // D is (E) instead of (H)
  bool norm = true;                        // false: y · silu(z)
  bool norm_before_gate = false;
  float norm_eps = 1e-5f;
  float dt_low = 0, dt_high = std::numeric_limits<float>::infinity();  // limits of Δ
  // Constant factors (muP): of the input, of z, x, B, C and Δ behind in_proj, of the output.
  float in_factor = 1, out_factor = 1;
  std::array<float, 5> zxBCdt_factors = {1, 1, 1, 1, 1};
  // Initial values only.
  double dt_min = 1e-3, dt_max = 0.1, dt_floor = 1e-4, A_min = 1, A_max = 16;
  double out_rescale = 1.0;  // out_proj is drawn this many times smaller: sqrt(n_layer)

  int64_t heads() const { return d_ssm / headdim; }               // H
  int64_t d_xBC() const { return d_ssm + 2 * groups * d_state; }  // what is convolved
  int64_t d_in_proj() const { return 2 * d_mlp + d_ssm + d_xBC() + heads(); }
};

// Throws Error for sizes that no mixer can have.
void check(const Mamba2Config& config);

class Mamba2 : public Mixer {
 public:
  // Registers `name`.in_proj.weight and so on.
  Mamba2(ParamSet& params, const std::string& name, const Mamba2Config& config);

  std::vector<StatePart> state_parts() const override;  // conv (E + 2GN, W), ssm (H, P, N)
  bool projects_first() const override { return config_.in_factor == 1; }
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;
  StepLayer step_layer(const Norm& norm) const override;

 private:
  bool steps() const;  // ops::mamba2_step is this mixer

  Mamba2Config config_;
  Param *in_proj_, *in_bias_ = nullptr, *conv_, *conv_bias_ = nullptr, *dt_bias_, *A_log_, *D_;
  Param *norm_ = nullptr, *out_proj_, *out_bias_ = nullptr;
};

}  // namespace krait::nn
