// Private to this room: the hot loop of s4_scan, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

constexpr int64_t kS4RowMultiple = 8;
constexpr int64_t kS4MaxRow = 128;

// One head of one sequence.
struct S4Run {
  bool dplr = false;
  int64_t row = 0;                 // states, a multiple of kS4RowMultiple
  const double* system = nullptr;  // (rows, 2, row)
  const double* C = nullptr;       // (2, row)
  double D = 0;
  int64_t L = 0;
  const void* u = nullptr;  // elements of one step `u_stride` apart
  void* y = nullptr;
  int64_t u_stride = 0, y_stride = 0;
  bool bf16 = false;
  double* h = nullptr;  // (2, row)
};

struct S4ScanKernels {
  void (*run)(const S4Run&);
};

KRAIT_DECLARE_ISA(S4ScanKernels, s4_scan_kernels)

}  // namespace krait
