// Private to this room: pooling on the GPU. Pointers on the device.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct PooledRows {
  int64_t n, L, D;                 // n sequences, of L tokens each where begin is null
  const int64_t* begin = nullptr;  // (n + 1)
};

// y (n, D), of the type of x; NaN for a sequence without tokens.
void pool_forward(const PooledRows& r, bool mean, const void* x, bool bf16, void* y, void* stream);
void pool_backward(const PooledRows& r, bool mean, const void* dy, bool bf16, void* dx,
                   void* stream);  // dx +=

// The last rows of y become `token`; a sequence without tokens has none.
void put_last_forward(const PooledRows& r, const float* token, float* y, void* stream);
// dx (+)= dy but for the last rows, whose sum dtoken (+)=; either may be null.
void put_last_backward(const PooledRows& r, const float* dy, float* dx, bool add_x, float* dtoken,
                       bool add_token, void* stream);

}  // namespace krait::cuda
