// Private to this room: the hot loops of gate, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

struct GateProblem {
  int kind = 0;  // ops::Gate
  bool bf16 = false;
  int64_t F = 0;
  const void *g = nullptr, *u = nullptr;  // u may be null
  int64_t g_row = 0, u_row = 0;           // elements between rows
  void* y = nullptr;                      // rows F apart
  // backward
  const void* dy = nullptr;           // rows F apart
  void *dg = nullptr, *du = nullptr;  // rows as those of g and u, or null
  bool add_g = false, add_u = false;
};

struct GateKernels {  // rows [begin, end)
  void (*forward)(const GateProblem&, int64_t begin, int64_t end);
  void (*backward)(const GateProblem&, int64_t begin, int64_t end);
};

KRAIT_DECLARE_ISA(GateKernels, gate_kernels)

}  // namespace krait
