// Experts in place of an MLP: each token is sent to k of n (see krait/ops/moe).
#pragma once
#include "krait/nn/block.h"
#include "krait/ops/moe/moe.h"

namespace krait::nn {

struct MoeConfig {
  enum class Expert {
    swiglu,  // down(silu(gate x) · up x): Jamba. experts.{e}.gate_proj.weight, up_proj, down_proj
    relu,    // lin2(relu(lin1 x)): Switch. lin1 (n, D, F), lin2 (n, F, D) in one tensor each
  } expert = Expert::swiglu;
  int64_t d_model = 0;  // D
  int64_t d_inner = 0;  // F, of one expert
  int64_t n_experts = 1;
  int64_t k = 1;
  double capacity_factor = 0;  // in training; 0: nothing is dropped
  float balance = 0;           // weight of the load-balancing loss
  Init init;                   // of swiglu's matrices; relu's are drawn as in llm-random
};

class Moe : public Mixer {
 public:
  // Registers `name`.router.weight (n, D), for relu `name`.gate (D, n), and the experts.
  Moe(ParamSet& params, const std::string& name, const MoeConfig& config);
  bool routes() const override { return true; }
  Tensor forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const override;

 private:
  MoeConfig config_;
  Param *router_, *up_, *gate_ = nullptr, *down_;
};

}  // namespace krait::nn
