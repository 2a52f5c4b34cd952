// Private to this room: s4_scan on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct S4ScanCall {
  bool dplr = false, bf16 = false;  // bf16: u and y
  int64_t H = 0, N = 0, row = 0;
  const double *system = nullptr, *C = nullptr;  // as in S4Steps
  const float* D = nullptr;
  int64_t sequences = 0, L = 0;
  const int64_t* begin = nullptr;  // as in a Packing, or null: L tokens each
  const int32_t *row_in = nullptr, *row_out = nullptr;
  const void* u = nullptr;
  int64_t u_stride = 0;  // y's is H
  void* y = nullptr;
  const float* state_in = nullptr;  // (rows, H, N, 2), or null
  float* state_out = nullptr;
};

void s4_scan(const S4ScanCall& c, void* stream);

// Gradients of a call; see ops/s4_scan/kernels.h. Null: not wanted, or zeros.
struct S4ScanAdjoint {
  S4ScanCall c;
  int64_t tokens = 0;                 // in all
  const void* dy = nullptr;           // (tokens, H), the type of u
  const float* dstate_out = nullptr;  // as c.state_out
  void* du = nullptr;
  int64_t du_stride = 0;
  float *dstate_in = nullptr, *dD = nullptr;  // (state_rows, H, N, 2), (H)
  int64_t state_rows = 0;
  bool du_add = false, dstate_add = false, dD_add = false;
  double* work = nullptr;  // s4_scan_adjoint_work
  double* sums = nullptr;  // (H, rows + 1, 2, row): what system and C are given, over all sequences
};

int64_t s4_scan_adjoint_work(const S4ScanAdjoint& a);  // doubles
void s4_scan_adjoint(const S4ScanAdjoint& a, void* stream);

}  // namespace krait::cuda
