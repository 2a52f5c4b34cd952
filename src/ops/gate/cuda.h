// Private to this room: gate on the GPU.
#pragma once
#include "krait/ops/gate/kernels.h"

namespace krait::cuda {

void gate_forward(const GateProblem& p, int64_t rows, void* stream);
void gate_backward(const GateProblem& p, int64_t rows, void* stream);

}  // namespace krait::cuda
