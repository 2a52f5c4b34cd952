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

}  // namespace krait::cuda
