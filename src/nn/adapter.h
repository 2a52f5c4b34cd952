// A low-rank correction of a linear layer that several layers share (LoRA, Hu et al. 2021):
//
//   y = x Wᵀ + b + (x downᵀ) upᵀ
#pragma once
#include "krait/nn/param.h"
#include "krait/tensor/context.h"

namespace krait::nn {

struct Adapter {
  const Param *down = nullptr, *up = nullptr;  // (rank, K), (N, rank); null: no correction

  // Registers `name`.0.weight and `name`.1.weight, as Zamba2 names them.
  static Adapter make(ParamSet& params, const std::string& name, int64_t rank, int64_t K, int64_t N,
                      double deviation);
};

// x (..., K) -> (..., N) in the activation type.
Tensor adapted_linear(Context& c, const Tensor& x, const Param& w, const Param* bias,
                      const Adapter& adapter);

}  // namespace krait::nn
