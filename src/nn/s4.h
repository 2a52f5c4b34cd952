// The S4 layer (Gu, Goel, Ré 2021) and its diagonal form S4D (Gu, Gupta, Goel, Ré 2022): a linear
// state-space model for each channel, as one long convolution or as a recurrence, then GELU and a gated
// linear layer. Norm and residual add are outside.
//
//   y = GELU(conv(x, K) + D x);   a, b = split(y Wᵀ + bias);   adds a σ(b)
//
// Names are those of the published S4 code: layer.kernel.{inv_dt, A_real, A_imag, B, C, P}, layer.D,
// output_linear.0.{weight, bias}.
#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "krait/nn/block.h"
#include "krait/ops/s4_kernel/s4_kernel.h"

namespace krait::nn {

struct S4Config {
  int64_t d_model = 0;   // H
  int64_t d_state = 64;  // 2N
  int64_t n_ssm = 1;     // S: systems shared by the heads in turn
  bool dplr = false;     // S4; else S4D
  bool bilinear = false;
  bool bidirectional = false;  // then there are no states and no steps
  std::string init = "legs";   // see nn/hippo.h; DPLR has legs and fout
  // DPLR: the length that C is attuned to; no longer sequences can be trained on.
  int64_t length = 0;
  double dt_min = 1e-3, dt_max = 0.1;
  float lr = 1e-3f;  // of inv_dt, A, B and P; 0: the global one
};

class S4 : public Mixer {
 public:
  // Registers `name`.layer.*, `name`.output_linear.*.
  S4(ParamSet& params, const std::string& name, const S4Config& config);

  std::vector<StatePart> state_parts() const override;  // ssm (H, N, 2)
  bool carries_by_host() const override { return true; }
  // With states it runs as a recurrence, without them as a convolution; both give the same.
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  ops::S4Params parameters() const;
  // The recurrent form of the parameters as they are now; made again where they have changed.
  std::shared_ptr<const ops::S4Steps> steps(const Context& c) const;

  S4Config config_;
  ops::S4Options options_;
  Param *inv_dt_, *A_real_, *A_imag_, *B_, *C_, *P_ = nullptr, *D_, *weight_, *bias_;
  mutable std::mutex mutex_;
  mutable std::vector<float> stepped_;  // the parameters that steps_ was made from
  mutable std::shared_ptr<const ops::S4Steps> steps_;
};

}  // namespace krait::nn
