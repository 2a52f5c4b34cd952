// Private to selective_scan: single elements of rows.
#pragma once
#include <cuda_bf16.h>

#include "krait/ops/selective_scan/cuda.h"

namespace krait::ops::scan {
namespace {

__device__ inline float value(const CudaRows& r, int64_t at) {
  return r.bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(r.data)[at])
                : static_cast<const float*>(r.data)[at];
}

__device__ inline void set_value(const CudaRows& r, int64_t at, float x) {
  if (r.add) x += value(r, at);
  if (r.bf16)
    static_cast<__nv_bfloat16*>(r.data)[at] = __float2bfloat16_rn(x);
  else
    static_cast<float*>(r.data)[at] = x;
}

}  // namespace
}  // namespace krait::ops::scan
