// Private to this room: s4_kernel on the GPU, in float64 throughout.
#pragma once
#include <cstdint>

namespace krait::cuda {

constexpr int64_t kS4MaxStates = 128;

struct S4Call {
  int64_t H = 0, S = 0, N = 0, channels = 1, L = 0;
  int64_t T = 0;  // what C is attuned to (DPLR)
  bool dplr = false, softplus_dt = false, positive_imag = false, bilinear = false;
  const float *inv_dt = nullptr, *A_real = nullptr, *A_imag = nullptr;
  const float *B = nullptr, *C = nullptr, *P = nullptr;  // B or null: ones
  double* scratch = nullptr;                             // s4_kernel_scratch
};

int64_t s4_kernel_scratch(const S4Call& c, bool backward);  // doubles
void s4_kernel(const S4Call& c, float* K, void* stream);

struct S4Sum {
  float* to = nullptr;  // or null: not wanted
  bool add = false;
};

struct S4Backward {
  S4Call c;
  const float* dK = nullptr;
  double* heads = nullptr;  // scratch (H, 3, N, 2): A, B, P of each head
  S4Sum inv_dt, A_real, A_imag, B, C, P;
};
void s4_kernel_backward(const S4Backward& b, void* stream);

}  // namespace krait::cuda
