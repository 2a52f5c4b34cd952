// Private to this room: long_conv on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Rows over time of H channels, float32 or bfloat16.
struct ConvRows {
  void* data = nullptr;
  int64_t stride = 0;
  bool bf16 = false, add = false;
};

struct LongConvCall {
  int64_t H = 0, L = 0, longest = 0, sequences = 0;
  const int64_t* begin = nullptr;  // as in a Packing, or null: L tokens each
  ConvRows u, y;
  const float *K = nullptr, *D = nullptr;  // (directions, H, Lk), (H)
  int64_t Lk = 0, directions = 1;
  int64_t taps[2] = {0, 0};   // samples of each kernel that are used
  double* scratch = nullptr;  // long_conv_scratch
};

// Doubles; 0 where shared memory is enough.
int64_t long_conv_scratch(const LongConvCall& c, bool backward);
void long_conv(const LongConvCall& c, void* stream);

struct LongConvBackward {
  LongConvCall c;
  ConvRows dy, du;                     // du.data null: not wanted
  float *dK = nullptr, *dD = nullptr;  // or null
  bool add_K = false, add_D = false;
};
void long_conv_backward(const LongConvBackward& b, void* stream);

}  // namespace krait::cuda
