// Private to selective_scan: the backward kernel for bfloat16 rows, which cuda_scan_backward turns to.
#pragma once
#include "krait/ops/selective_scan/cuda.h"

namespace krait::ops::scan {

// Whether it can, where all rows but B and C are bfloat16 that can be moved by fours and dy, du, ddt and dz are there.
bool cuda_takes_bf16_backward(const CudaProblem& p);
int64_t cuda_backward_bf16_scratch(const CudaProblem& p);
void cuda_scan_backward_bf16(const CudaBackward& w, void* stream);

}  // namespace krait::ops::scan
