// Private to this room: the hot loop of dropout_add, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

struct DropoutProblem {
  uint64_t seed = 0, stream = 0;
  const uint64_t* offset = nullptr;  // on a GPU: added to stream when the kernel runs
  uint32_t threshold = 0;  // kept where the upper 24 bits of the random word are at least this
  float scale = 1;         // 1 / (1-p)
  const void* x = nullptr;
  bool bf16 = false;  // x (forward), out (backward)
};

struct DropoutKernels {
  // y = stream + x * mask for elements [begin, end); begin is a multiple of 4.
  void (*forward)(const DropoutProblem&, const float* stream, float* y, int64_t begin, int64_t end);
  // dx (+)= dy * mask
  void (*backward)(const DropoutProblem&, const float* dy, void* dx, bool add, int64_t begin,
                   int64_t end);
};

KRAIT_DECLARE_ISA(DropoutKernels, dropout_kernels)

}  // namespace krait
