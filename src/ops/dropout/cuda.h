// Private to this room: dropout_add on the GPU.
#pragma once
#include "krait/ops/dropout/kernels.h"

namespace krait::cuda {

// DropoutKernels on elements [0, n).
void dropout_forward(const DropoutProblem& p, const float* stream_in, float* y, int64_t n,
                     void* stream);
void dropout_backward(const DropoutProblem& p, const float* dy, void* dx, bool add, int64_t n,
                      void* stream);

}  // namespace krait::cuda
