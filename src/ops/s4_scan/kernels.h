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

// The adjoint of a run, states in float64. Doubles throughout, vectors in planes of `row`.
struct S4Adjoint {
  bool dplr = false;
  int64_t row = 0;
  const double *system = nullptr, *C = nullptr;
  double D = 0;
  int64_t L = 0;
  const double *u = nullptr, *dy = nullptr;  // (L); null: zeros
  double* du = nullptr;                      // (L), or null
  double* h = nullptr;                       // the state before; overwritten
  double* g = nullptr;  // in: the gradient of the state after; out: of the one before
  double *dsystem = nullptr, *dC = nullptr;  // as system and C: added to
  double* dD = nullptr;                      // added to
  double* work = nullptr;                    // s4_adjoint_work
};

// Steps between two states that a run of the adjoint keeps while it goes forwards.
constexpr int64_t kS4Kept = 128;
constexpr int64_t s4_adjoint_work(int64_t L, int64_t row) {
  return ((L + kS4Kept - 1) / kS4Kept + kS4Kept) * 2 * row;
}

struct S4ScanKernels {
  void (*run)(const S4Run&);
  void (*adjoint)(const S4Adjoint&);
};

KRAIT_DECLARE_ISA(S4ScanKernels, s4_scan_kernels)

}  // namespace krait
