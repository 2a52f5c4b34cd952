// Private to this room: the hot loops of glu, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

// `rows` rows of x (2H) and y (H), float32 or bfloat16.
struct GluKernels {
  void (*forward)(const void* x, void* y, bool bf16, int64_t rows, int64_t H);
  void (*backward)(const void* x, const void* dy, void* dx, bool bf16, bool add, int64_t rows,
                   int64_t H);
};

KRAIT_DECLARE_ISA(GluKernels, glu_kernels)

}  // namespace krait
