// Private to this room: add_positions on the GPU. Pointers on the device.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct Positions {
  int64_t n, tokens, L, D, T;  // n sequences, of L tokens each where begin is null
  const int64_t* begin = nullptr;
  const int32_t *in = nullptr, *out = nullptr;  // rows of the states; null: row s
  const float* state_in = nullptr;
  float* state_out = nullptr;
  int32_t* position = nullptr;  // (tokens): written by forward, read by backward
};

void positions_forward(const Positions& p, const float* x, const void* w, bool bf16, float* y,
                       void* stream);
void positions_backward(const Positions& p, const float* dy, float* dw, void* stream);  // dw +=

}  // namespace krait::cuda
