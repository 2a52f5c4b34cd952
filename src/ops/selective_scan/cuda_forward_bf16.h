// Private to selective_scan: the forward kernel for bfloat16 rows and up to 16 states, which cuda_scan_forward
// turns to where rows can be moved by fours and neither B nor C is constant.
#pragma once
#include "krait/ops/selective_scan/cuda.h"

namespace krait::ops::scan {

int64_t cuda_forward_bf16_scratch(const CudaProblem& p);
void cuda_scan_forward_bf16(const CudaForward& w, void* stream);

}  // namespace krait::ops::scan
