// Private to this room: the hot loops of norm, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

// One call. Strides are elements between rows; y, sum, dy and dsum have theirs D apart.
struct NormProblem {
  int64_t D = 0;
  bool layer = false;
  float eps = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  bool x_bf16 = false;
  const float* residual = nullptr;  // or null: s = x
  int64_t residual_stride = 0;
  const float *w = nullptr, *b = nullptr;  // or null
  void* y = nullptr;
  bool y_bf16 = false;
  float* sum = nullptr;    // s, where there is a residual
  float* scale = nullptr;  // 1 / the norm of each row, for backward, or null
  float* mean = nullptr;   // of each row (layer), or null
  // backward: reads s (sum with stride D, or x), scale and mean; on a GPU writes y again, without b, unless it is null
  const void* dy = nullptr;     // dtype of y; or null: zero
  const float* dsum = nullptr;  // gradient of the sum that came from elsewhere, or null
  float* dresidual = nullptr;   // written: the total; may be dsum's memory; or null
  int64_t dresidual_stride = 0;
  void* dx = nullptr;  // the total, in the dtype of x; or null
  int64_t dx_stride = 0;
  bool dx_add = false;
  void* dx_bf16 =
      nullptr;  // the same in bfloat16, rows D apart, where dx is float32; or null; on a GPU alone
};

struct NormKernels {
  void (*forward)(const NormProblem&, int64_t row, int64_t end);
  // dw, db (D): added to; or null.
  void (*backward)(const NormProblem&, int64_t row, int64_t end, float* dw, float* db);
};

KRAIT_DECLARE_ISA(NormKernels, norm_kernels)

}  // namespace krait
