// Private to this room: the hot loops of gelu, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

// n elements, float32 or bfloat16.
struct GeluKernels {
  void (*forward)(const void* x, void* y, bool bf16, int64_t n);
  void (*backward)(const void* x, const void* dy, void* dx, bool bf16, bool add, int64_t n);
};

KRAIT_DECLARE_ISA(GeluKernels, gelu_kernels)

}  // namespace krait
