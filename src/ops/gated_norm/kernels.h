// Private to this room: the hot loops of gated_norm, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops {

// One call. Strides are elements between rows; y and dy have theirs E apart.
struct GatedNormProblem {
  int64_t E = 0, groups = 1;
  bool gate_first = true;
  float eps = 0;
  bool bf16 = false;  // of all but w and b
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* z = nullptr;  // or null
  int64_t z_stride = 0;
  const float *w = nullptr, *b = nullptr;  // b or null
  void* y = nullptr;
  // backward; on a GPU it writes y again, unless that is null
  const void* dy = nullptr;
  void *dx = nullptr, *dz = nullptr;  // or null
  int64_t dx_stride = 0, dz_stride = 0;
  bool dx_add = false, dz_add = false;
};

struct GatedNormKernels {
  void (*forward)(const GatedNormProblem&, int64_t row, int64_t end);
  // dw, db (E): added to; or null.
  void (*backward)(const GatedNormProblem&, int64_t row, int64_t end, float* dw, float* db);
};

}  // namespace krait::ops

namespace krait {
KRAIT_DECLARE_ISA(ops::GatedNormKernels, gated_norm_kernels)
}
