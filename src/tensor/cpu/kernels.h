// The hot loops of convert.h.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::cpu {

// n elements; bfloat16 as its bits. With `add`: to += from.
struct ConvertKernels {
  void (*f32_to_bf16)(const float* from, uint16_t* to, int64_t n, bool add);
  void (*bf16_to_f32)(const uint16_t* from, float* to, int64_t n, bool add);
};

}  // namespace krait::cpu

namespace krait {
KRAIT_DECLARE_ISA(cpu::ConvertKernels, convert_kernels)
}
