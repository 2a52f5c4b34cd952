// Private to this room: the hot loops of rotary, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

// One token: H heads of P elements.
struct RotaryProblem {
  bool bf16 = false, interleaved = false, add = false;
  int64_t H = 0, P = 0, R = 0;
  int64_t from_head = 0, to_head = 0;  // elements between heads
};

struct RotaryKernels {
  // turn (R): the cosines of the R/2 pairs, then their sines.
  void (*rotate)(const RotaryProblem&, const float* turn, const void* from, void* to);
};

KRAIT_DECLARE_ISA(RotaryKernels, rotary_kernels)

}  // namespace krait
