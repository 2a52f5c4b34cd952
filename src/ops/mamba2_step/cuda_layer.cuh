// Private to this room: what both kernels of all layers read of a layer.
#pragma once
#include "krait/ops/mamba2_step/cuda.h"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

__device__ inline ConvOfStep conv_of(const Step2StackLayer& l) {
  return {l.taps, l.bias, static_cast<ConvOfStep::Held::Stored*>(l.conv_state)};
}

constexpr int kRun = 4;  // neighbouring states

}  // namespace krait::cuda
