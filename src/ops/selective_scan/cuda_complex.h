// Private to selective_scan: complex states on NVIDIA GPUs; N floats of A, B, C and the states are N/2 pairs.
#pragma once
#include "krait/ops/selective_scan/cuda.h"

namespace krait::ops::scan {

constexpr int64_t kMostComplex = 256;  // N that there are kernels for

void cuda_complex_forward(const CudaForward& w, void* stream);  // needs no scratch
int64_t cuda_complex_scratch(const CudaProblem& p);             // of backward, floats
void cuda_complex_backward(const CudaBackward& w, void* stream);

}  // namespace krait::ops::scan
